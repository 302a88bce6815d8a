"""What Orbax raises when it cannot save, in few words, and only once."""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
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


def _is_retrieved(record: logging.LogRecord) -> bool:
    return "never retrieved" not in record.getMessage()


# When one file cannot be written, Orbax raises that, and asyncio logs all others that nobody waits
# for any more, whenever they are collected: at the latest when the process ends.
logging.getLogger("asyncio").addFilter(_is_retrieved)


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """Keeps quiet that one failure which Orbax raises as well.

    It also logs it in each of its threads with a traceback.
    """

    def is_news(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "/orbax/" not in record.pathname

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    previous, sys.unraisablehook = sys.unraisablehook, hook
    logger = absl_logging.get_absl_logger()
    logger.addFilter(is_news)
    try:
        yield
    finally:
        sys.unraisablehook = previous
        logger.removeFilter(is_news)
