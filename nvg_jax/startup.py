"""How a process starts: compiled programs are kept in the workdir, and it says what took long."""

from __future__ import annotations

import collections
import contextlib
import gc
import logging
import os
import time
from collections.abc import Iterator

import jax

import nvg_jax

log = logging.getLogger(__name__)

_COMPILED = "/jax/core/compile/backend_compile_duration"  # XLA, or reading the cache instead.

_PARTS = ("imports", "data", "initialisation", "tracing", "compilation", "step")
_seconds: collections.Counter[str] = collections.Counter()
_started = False


def start(workdir: os.PathLike | str) -> None:
    """To be called once by a command, after its imports and before anything is compiled.

    Compiled programs are kept in `compilation_cache/` of the workdir and read by the next start,
    unless JAX has been told of another place already (JAX_COMPILATION_CACHE_DIR). In a run of
    several processes all read there and process 0 writes, as far as JAX can share programs.
    """
    global _started
    _started = True
    gc.freeze()  # Tracing causes many collections; none need look at what imports made.
    _seconds["imports"] = time.monotonic() - nvg_jax.START_TIME
    jax.monitoring.register_event_duration_secs_listener(_count_compilation)
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", f"{workdir}/compilation_cache")
        # A start compiles many small programs; below this, reading takes as long as compiling.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """Counts the time in it, less that of compilation, as the part `name` of the start."""
    begin, compiled = time.monotonic(), _seconds["compilation"]
    try:
        yield
    finally:
        compiled = _seconds["compilation"] - compiled
        _seconds[name] += time.monotonic() - begin - compiled


def log_first_step() -> None:
    """Logs once, after the first step, how long it took from the process's start, in parts.

    The parts: imports; data, the wait for the first batch; tracing the step's program; compilation
    of all programs; the step itself. What is left is initialisation: devices, other processes,
    frozen networks, the state made or restored. Silent where `start` was not called.
    """
    global _started
    if not _started:
        return
    _started = False
    total = time.monotonic() - nvg_jax.START_TIME
    _seconds["initialisation"] = total - sum(_seconds.values())
    shown = ", ".join(f"{name} {_seconds[name]:.1f}" for name in _PARTS)
    log.info("first step after %.1f s: %s", total, shown)


def _count_compilation(event: str, seconds: float, **_: object) -> None:
    if event == _COMPILED:
        _seconds["compilation"] += seconds
