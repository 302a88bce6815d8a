"""What the commands share: flags, messages on the terminal, and mistakes as one line."""

from __future__ import annotations

import argparse
import logging
import os
import runpy
import sys
import textwrap
import traceback
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

from nvg_jax.errors import UserError


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs `main`; a UserError ends it with its line and exit code 1."""
    _show_messages()

    def guarded(_: list[str]) -> None:
        try:
            main()
        except UserError as error:
            sys.exit(f"error: {error}")
        except AttributeError as error:
            if not error.args or not isinstance(error.args[0], KeyError):
                raise
            # As ml_collections says it.
            sys.exit(f"error: the config lacks {_line(error)}: begin with configs/base.py")

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    """Reads the flags and the config file that `--config` names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-config", nargs="?")
    config_file = parser.parse_known_args(argv[1:])[0].config
    if config_file is not None:
        _try_config(*config_file.split(":", 1))
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"error: {_line(error)}")
    except (AttributeError, KeyError) as error:
        sys.exit(f"error: unknown config key {_line(error)}")
    if rest[1:]:
        sys.exit(f"error: not a flag: {' '.join(rest[1:])}")
    return rest


def _try_config(file: str, *argument: str) -> None:
    """Ends with a line if a config file, which is a program, does not give a config."""
    if not os.path.isfile(file):
        sys.exit(f"error: no config file {file or '(an empty name)'}")
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
