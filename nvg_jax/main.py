"""The command line: `python -m nvg_jax.main --config=configs/nvg_digits.py --workdir=DIR`.

Installed, it is `nvg-jax --config=nvg_digits --workdir=DIR`.
"""

from __future__ import annotations

import signal
import sys

from nvg_jax import stopping

if __name__ == "__main__":
    stopping.watch()  # Before the imports, which take a while.
elif __name__ == "__mp_main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A data worker is ended by the main process.

import logging
import os

from absl import flags
from ml_collections import config_flags

from nvg_jax import cli, files

JOBS = ("train", "tokenize", "sample", "control", "edit", "reconstruct", "evaluate")
JOBS += ("export", "compile")

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config: its path or name.")
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
    # Whether `tokenize` writes there depends on its config.
    find = files.readable_workdir if _JOB.value == "tokenize" else files.usable_workdir
    workdir = find(_WORKDIR.value)
    if _JOB.value == "train":
        stopping.say_last(lambda: _what_remains(workdir))

    # Not at the top: data workers import this file, and need nothing of what the jobs do.
    from nvg_jax import distributed, jobs, startup
    from nvg_jax.errors import Preempted

    startup.start(workdir)

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
            getattr(jobs, _JOB.value)(config, workdir)
    except Preempted as stopped:
        logging.getLogger(jobs.__name__).info("%s", stopped)
        sys.exit(_STOPPED_EXIT_CODE.value)


def _what_remains(workdir: str) -> str:
    """Which checkpoints a training that is stopped leaves."""
    if files.is_remote(workdir):
        return ": run the same command again to go on from the newest checkpoint"
    for name in ("generator", "tokenizer"):
        directory = f"{workdir}/{name}/checkpoints"
        there = os.listdir(directory) if os.path.isdir(directory) else []
        if steps := [int(step) for step in there if step.isdecimal()]:
            return (
                f": step {max(steps)} of the {name} remains in {directory}; run the same command "
                "again to go on"
            )
    return ": nothing has been saved yet"


if __name__ == "__main__":
    cli.run(main)
