"""The command line: `python -m nvg_jax.main --config=configs/nvg_digits.py --workdir=DIR`."""

from __future__ import annotations

import logging

from absl import flags
from ml_collections import config_flags

from nvg_jax import cli

JOBS = ("train", "tokenize", "sample", "control", "reconstruct", "evaluate", "export")

_CONFIG = config_flags.DEFINE_config_file("config", None, "File path of the config.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for checkpoints and results.")
_JOB = flags.DEFINE_enum("job", "train", JOBS, "What to do.")
_STRICT = flags.DEFINE_bool("strict", False, "Short for --config.control.strict.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    # Not at the top: data workers import this file, and need nothing of what the jobs do.
    from nvg_jax import jobs
    from nvg_jax.training.loop import Preempted

    config = _CONFIG.value
    config.control.strict |= _STRICT.value
    try:
        getattr(jobs, _JOB.value)(config, _WORKDIR.value)
    except Preempted as stopped:
        logging.getLogger(jobs.__name__).info("%s", stopped)


if __name__ == "__main__":
    cli.run(main)
