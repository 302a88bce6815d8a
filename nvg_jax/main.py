"""The command line: `python -m nvg_jax.main --config=configs/nvg_digits.py --workdir=DIR`."""

from __future__ import annotations

import logging
import sys

from absl import flags
from ml_collections import config_flags

from nvg_jax import cli

JOBS = ("train", "tokenize", "sample", "control", "reconstruct", "evaluate", "export", "compile")

_CONFIG = config_flags.DEFINE_config_file("config", None, "File path of the config.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for checkpoints and results.")
_JOB = flags.DEFINE_enum("job", "train", JOBS, "What to do.")
_STRICT = flags.DEFINE_bool("strict", False, "Short for --config.control.strict.")
_COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0, where no cluster tells it."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of this run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_STOPPED_EXIT_CODE = flags.DEFINE_integer(
    "stopped_exit_code", 0, "Exit code after SIGTERM, for schedulers that start again by it."
)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    # Not at the top: data workers import this file, and need nothing of what the jobs do.
    from nvg_jax import distributed, jobs, startup
    from nvg_jax.errors import Preempted

    startup.start(_WORKDIR.value)

    config = _CONFIG.value
    config.control.strict |= _STRICT.value
    processes = distributed.processes(
        _COORDINATOR_ADDRESS.value,
        _NUM_PROCESSES.value,
        _PROCESS_ID.value,
        stopped_exit_code=_STOPPED_EXIT_CODE.value,
    )
    try:
        with processes as index:
            if index:
                cli.show_warnings_only(f"process {index}: ")
            getattr(jobs, _JOB.value)(config, _WORKDIR.value)
    except Preempted as stopped:
        logging.getLogger(jobs.__name__).info("%s", stopped)
        sys.exit(_STOPPED_EXIT_CODE.value)


if __name__ == "__main__":
    cli.run(main)
