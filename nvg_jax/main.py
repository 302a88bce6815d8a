"""The command line: `python -m nvg_jax.main --config=configs/nvg_digits.py --workdir=DIR`."""

from __future__ import annotations

import logging
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from nvg_jax import jobs
from nvg_jax.errors import UserError
from nvg_jax.training.loop import Preempted

JOBS = {
    "train": jobs.train,
    "sample": jobs.sample,
    "reconstruct": jobs.reconstruct,
    "evaluate": jobs.evaluate,
    "export": jobs.export,
}

_CONFIG = config_flags.DEFINE_config_file("config", None, "File path of the config.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for checkpoints and results.")
_JOB = flags.DEFINE_enum("job", "train", list(JOBS), "What to do.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    del argv
    try:
        JOBS[_JOB.value](_CONFIG.value, _WORKDIR.value)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Preempted as stopped:
        logging.getLogger(__name__).info("%s", stopped)


def parse_flags(argv: list[str]) -> list[str]:
    """Reads the flags and the config file; a mistake in them ends the program with one line."""
    try:
        arguments = flags.FLAGS(argv)
        flags.FLAGS["config"].value  # noqa: B018  The file is read on first use.
    except flags.Error as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyError as error:
        sys.exit(f"error: unknown config key {' '.join(error.args[0].split())}")
    except FileNotFoundError as error:
        sys.exit(f"error: no config file {error.filename}")
    return arguments


def show_progress() -> None:
    """Puts the package's messages on the terminal, and of others' only the warnings."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("nvg_jax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    absl_logging.set_verbosity(absl_logging.WARNING)


if __name__ == "__main__":
    show_progress()
    app.run(main, flags_parser=parse_flags)
