"""What Orbax raises when it cannot save, in few words, and only once.

Importing this keeps quiet what Orbax logs of an error that it raises as well.
"""

import logging
import os
import re
import sys
from typing import Any

from absl import logging as absl_logging

# What Orbax and TensorStore raise for files that cannot be written, and for a process that failed
# or did not come.
SAVING_ERRORS = (OSError, ValueError, RuntimeError)


def reason(error: Exception) -> str:
    """An exception as few words: the operating system's, if it is about that."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code := re.search(r"os_error_code='(\d+)'", str(error)):  # As TensorStore says it.
        return os.strerror(int(code[1]))
    return " ".join(str(error).split())[:200] or type(error).__name__


def _is_waited_for(record: logging.LogRecord) -> bool:
    return "never retrieved" not in record.getMessage()


def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or "/orbax/" not in record.pathname


def _hook(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        _previous_hook(unraisable)


# When a file cannot be written, Orbax raises that, and logs it with a traceback in each of its
# threads, which can outlive the save; asyncio tells of all other files that nobody waits for any
# more when these are collected. Both can happen as late as at the process's end.
absl_logging.get_absl_logger().addFilter(_is_news)
logging.getLogger("asyncio").addFilter(_is_waited_for)
_previous_hook, sys.unraisablehook = sys.unraisablehook, _hook
