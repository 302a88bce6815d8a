"""What the commands share: flags, messages on the terminal, and mistakes as one line."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import runpy
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from typing import IO, Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

from nvg_jax import configs, stopping
from nvg_jax.errors import UserError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_LESS_MEMORY = (
    "lower the job's batch_size (config.sampling.batch_size, config.evaluation.batch_size) or "
    "num_samples; in training raise microbatches"
)


def run(main: Callable[[], None], has_flags: bool = True) -> None:
    """Parses the flags and runs `main`; a UserError ends it with its line and exit code 1.

    So do too little memory and a full disk; Ctrl-C and SIGTERM as `stopping` says. Output that
    nobody takes any more, as after `| head -1` or on a full disk, is lost and ends nothing.

    has_flags: whether these are absl's; else `main` reads its arguments itself.
    """
    stopping.watch()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        setattr(sys, name, _Stream.of(getattr(sys, name), number))
    _show_messages()

    def guarded(_: list[str]) -> None:
        try:
            main()
        except UserError as error:
            sys.exit(f"error: {' '.join(str(error).splitlines())}")
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            sys.exit(f"error: {error.filename or 'a file'} cannot be written ({error.strerror})")
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            sys.exit(f"error: not enough memory ({_line(error)}): {_LESS_MEMORY}")
        except AttributeError as error:
            if not error.args or not isinstance(error.args[0], KeyError):
                raise
            # As ml_collections says it.
            sys.exit(f"error: the config lacks {_line(error)}: begin with configs/base.py")

    app.run(guarded, flags_parser=_parse_flags if has_flags else _leave_flags)


class _Stream:
    """A standard stream that never fails: once it cannot be written, what is written is lost."""

    def __init__(self, stream: Any, number: int):
        self._stream, self._number = stream, number

    @classmethod
    def of(cls, stream: Any, number: int) -> _Stream | IO[str]:
        """The stream of a file descriptor, which is opened if it is closed.

        If it stayed closed, the next file to be opened would get what is meant for the terminal.
        """
        if stream is None:
            with contextlib.suppress(OSError):
                os.close(number)
            os.open(os.devnull, os.O_RDWR)
            stream = open(number, "r" if number == 0 else "w", closefd=False)
        if number == 0:
            return stream
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
        return cls(stream, number)

    def write(self, text: str) -> int:
        with self._surviving():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._surviving():
            self._stream.flush()

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # What is left in its buffer goes there as well, when Python ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._number)
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _parse_flags(argv: list[str]) -> list[str]:
    """Reads the flags and the config that `--config` gives by its path or name."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-config", nargs="?")
    given, others = parser.parse_known_args(argv[1:])
    if given.config is not None:
        config, *argument = given.config.split(":", 1)
        file = configs.find(config)
        if not file:
            known = ", ".join(configs.names())
            sys.exit(f"error: no config {config or '(an empty name)'}: name a file or {known}")
        _try_config(file, *argument)
        argv = [argv[0], f"--config={':'.join([file, *argument])}", *others]
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"error: {_line(error)}")
    except (AttributeError, KeyError) as error:
        sys.exit(f"error: unknown config key {_line(error)}")
    if rest[1:]:
        sys.exit(f"error: not a flag: {' '.join(rest[1:])}")
    return rest


def _leave_flags(argv: list[str]) -> list[str]:
    flags.FLAGS.mark_as_parsed()
    return argv


def _try_config(file: str, *argument: str) -> None:
    """Ends with a line if a config file, which is a program, does not give a config."""
    try:
        config = runpy.run_path(file)["get_config"](*argument)
    except Exception as error:
        if isinstance(error, KeyError) and error.args == ("get_config",):
            sys.exit(f"error: config file {file} has no function get_config")
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        line = f", line {lines[-1]}" if lines else ""
        sys.exit(f"error: config file {file}{line}: {type(error).__name__}: {_line(error)}")
    if not isinstance(config, ConfigDict):
        sys.exit(f"error: config file {file} gives no ConfigDict but {type(config).__name__}")


def _line(error: BaseException) -> str:
    """What an exception says, shortened to a line."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    return textwrap.shorten(str(said), 300, placeholder=" ...")


def show_warnings_only(prefix: str) -> None:
    """Leaves the messages of a run to another process, which has the same to say."""
    logger = logging.getLogger("nvg_jax")
    logger.setLevel(logging.WARNING)
    for handler in logger.handlers:
        handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S"))


def _show_messages() -> None:
    """Shows the package's messages, and of others' only the warnings."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("nvg_jax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    absl_logging.set_verbosity(absl_logging.WARNING)
