"""Several processes as one run: how they find each other, and how all end when one of them does."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from nvg_jax.errors import Preempted, UserError

# What tells a process of the others, where no cluster does. JAX itself reads the first.
VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}

_START_SECONDS = 300  # Machines and containers do not start at the same time.
_HEARTBEAT_SECONDS = 30  # After which a silent process counts as dead.
_END_SECONDS = 3600  # Process 0 may have metrics and pictures to make when the others are done.
_FAREWELL_SECONDS = 20  # How long a process that ends early waits for others that do so as well.

_ENDED = (
    "another process of this run has ended ({}): start all of them again with the same command, "
    "and training goes on from the last checkpoint"
)
_NEVER_CAME = (
    "the processes of this run did not all come together within {} s: see that all are started, "
    "with the same number of processes, and reach the port of process 0"
)

# What failed communication is called by the libraries that do it.
_LOST_CONNECTION = re.compile("Gloo|NCCL|[Bb]arrier|coordination service")


@contextlib.contextmanager
def processes(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    stopped_exit_code: int = 0,
    start_seconds: int = _START_SECONDS,
) -> Iterator[int]:
    """Makes this process one of a run of many, if it is one; gives its number, which is 0 alone.

    What is not given comes from VARIABLES, or else from the cluster that JAX detects: a TPU pod,
    Slurm, a Kubernetes Job, Open MPI. With `num_processes` 1 it is alone wherever it runs. Has to
    come before any other use of devices.

    When another process dies, this one ends within a minute, with one line and exit code 1: either
    by a UserError, because it was talking to the other one, or at once, when JAX gives notice. On
    leaving it waits for the others; after an exception only for a short time, since they may not
    know of it, and then ends with exit code 1, or `stopped_exit_code` after Preempted.

    Raises:
      UserError: it is said only in part which processes there are, or another one has ended.
    """
    given = from_environment(
        os.environ,
        coordinator_address=coordinator_address,
        num_processes=num_processes,
        process_id=process_id,
    )
    if not _initialize(given, start_seconds):
        yield 0
        return
    _when_aborted("error: " + _ENDED.format("or is out of reach; the lines above are JAX's report"))
    try:
        yield jax.process_index()
    except BaseException as error:
        reason = _lost_connection(error)
        code = stopped_exit_code if isinstance(error, Preempted) else 1
        _end_within(1 if reason else _FAREWELL_SECONDS, code)
        if reason:
            raise UserError(_ENDED.format(reason)) from error
        raise
    jax.distributed.shutdown()


def agreed(words: str) -> str:
    """The same on every process: what the first that has something to say says, or else ''.

    Every process has to call it. Words are cut off after 4,000 bytes.
    """
    if jax.process_count() == 1:
        return words
    mine = np.frombuffer(words.encode()[:4000].ljust(4000, b"\0"), np.uint8)
    said = (bytes(row).rstrip(b"\0") for row in multihost_utils.process_allgather(mine))
    return next(filter(None, said), b"").decode(errors="ignore")


def from_environment(
    environment: Mapping[str, str], **flags: str | int | None
) -> dict[str, str | int]:
    """What is said of VARIABLES' names, by flags or else by the environment.

    Raises:
      UserError: a value is none that JAX could read.
    """
    given: dict[str, Any] = {}
    for name, variable in VARIABLES.items():
        value = flags.get(name)
        if value is None:
            value = environment.get(variable) or None
        if value is None:
            continue
        if name == "coordinator_address":
            is_valid, form = re.fullmatch(r".+:\d{1,5}", value), "host:port, of process 0"
        else:
            is_valid, form = re.fullmatch(r"\d{1,9}", str(value)), "a number from 0"
        if not is_valid:
            raise UserError(f"{_both_names(name)} is {value!r}: give {form}")
        given[name] = value if name == "coordinator_address" else int(value)
    return given


def check_detection(environment: Mapping[str, str], given: Mapping[str, Any]) -> None:
    """Nothing was detected: raises a UserError where this process is not alone all the same."""
    variables = ", ".join(VARIABLES.values())
    alone = f"for a run of one process set {VARIABLES['num_processes']}=1"
    if given:
        missing = ", ".join(_both_names(name) for name in VARIABLES if name not in given)
        raise UserError(
            f"{' and '.join(map(_both_names, given))} given, but no cluster that tells the rest: "
            f"give {missing} as well"
        )
    if int(environment.get("SLURM_NTASKS", 1)) > 1:
        raise UserError(
            f"this Slurm job has {environment['SLURM_NTASKS']} tasks, but srun did not start this "
            f"process: start it with srun; {alone}"
        )
    if "KUBERNETES_SERVICE_HOST" in environment:
        raise UserError(
            f"this is a pod in Kubernetes, and nothing tells of the others: set {variables}, or "
            f"start it as an indexed Job with jax[k8s] installed; {alone}"
        )


def _both_names(name: str) -> str:
    return f"--{name} (or ${VARIABLES[name]})"


def _initialize(given: dict[str, Any], start_seconds: int) -> bool:
    """Joins the other processes; False if there are none."""
    if given.get("num_processes") == 1:
        return False
    told_by_cluster = os.environ.keys() & {"JOB_COMPLETION_INDEX", "TPU_WORKER_ID"}
    if "KUBERNETES_SERVICE_HOST" in os.environ and not given and not told_by_cluster:
        check_detection(os.environ, given)  # JAX would ask Kubernetes for a Job that is not there.
    is_complete = len(given) == len(VARIABLES)
    if is_complete and given["process_id"] == 0:
        _check_port(int(given["coordinator_address"].rpartition(":")[2]))
    handler_before = _when_aborted("error: " + _NEVER_CAME.format(start_seconds))
    # SIGTERM is noticed by the training loop, which knows when to save; elsewhere it ends us.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with warnings.catch_warnings():
            # JAX warns that it cannot ask Kubernetes, where `check_detection` has more to say.
            warnings.simplefilter("ignore")
            jax.distributed.initialize(
                **given,
                cluster_detection_method="deactivate" if is_complete else None,
                initialization_timeout=start_seconds,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_END_SECONDS,
            )
    except Exception as error:
        # Of any kind: detection reads variables, asks servers and resolves names.
        text = " ".join(str(error).split())[:300]
        if "should be defined" in text or "must be defined" in text:
            check_detection(os.environ, given)
            _handle_abort(handler_before)
            return False
        raise UserError(
            f"this process cannot join a run ({type(error).__name__}: {text}): give "
            f"{', '.join(map(_both_names, VARIABLES))}"
        ) from error
    return True


def _check_port(port: int) -> None:
    """Raises a UserError if process 0 cannot listen there: JAX would crash."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"process 0 cannot listen on port {port} ({error}): choose another port, or end "
                "the run that has it"
            ) from None


_last_words = ""  # What a process says when JAX aborts it, and the exit code.
_exit_code = 1


def _when_aborted(line: str, code: int = 1) -> int | None:
    """Ends the process with this line and exit code when JAX aborts it from a thread of its own.

    JAX calls abort() when it gives up on another process, and takes no Python function in place of
    that. Python's handlers of signals run in the main thread, which waits for the other process;
    and absl's would show the stacks of all threads. Returns the handler before.
    """
    global _last_words, _exit_code
    _last_words, _exit_code = f"{line}\n" if line else "", code
    return _handle_abort(ctypes.cast(_aborted, ctypes.c_void_p))


def _handle_abort(handler: Any) -> int | None:
    """Sets the process's handler of SIGABRT, a C function, and returns the one before."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    return libc.signal(signal.SIGABRT, handler)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
    os.write(2, _last_words.encode())
    os._exit(_exit_code)


def _lost_connection(error: BaseException | None) -> str:
    """One line about failed communication, if that is what led to this exception; else empty."""
    while error is not None:
        # A mistake of the user's has its own line to say.
        if isinstance(error, Exception) and not isinstance(error, UserError):
            if _LOST_CONNECTION.search(str(error)):
                return str(error).splitlines()[0][:200]
        error = error.__context__
    return ""


def _end_within(seconds: float, code: int) -> None:
    """Ends this process, whatever it waits for: other processes may never come."""
    _when_aborted("", code)  # It has said already why it ends.

    def end() -> None:
        time.sleep(seconds)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    threading.Thread(target=end, daemon=True).start()
