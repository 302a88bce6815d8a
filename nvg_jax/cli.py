"""What the commands share: flags, messages on the terminal, and mistakes as one line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from nvg_jax.errors import UserError


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs `main`; a UserError ends it with its line and exit code 1."""
    _show_messages()

    def guarded(_: list[str]) -> None:
        try:
            main()
        except UserError as error:
            sys.exit(f"error: {error}")

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    """Reads the flags and the config file that `--config` names."""
    try:
        rest = flags.FLAGS(argv)
        flags.FLAGS.config.keys()  # A file that could not be loaded says so on first use.
    except flags.Error as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyError as error:
        sys.exit(f"error: unknown config key {' '.join(error.args[0].split())}")
    except OSError:
        sys.exit(f"error: no config file {config_flags.get_config_filename(flags.FLAGS['config'])}")
    if rest[1:]:
        sys.exit(f"error: not a flag: {' '.join(rest[1:])}")
    return rest


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
