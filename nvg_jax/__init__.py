"""Next Visual Granularity image generation in JAX."""

import ctypes
import os
import time

__version__ = "0.2.0.dev0"

START_TIME = time.monotonic()  # Of the process, but for what Python itself needs.

# TensorFlow prepares data; without this it opens with notes on its arithmetic.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def _keep_memory() -> None:
    """Tells glibc to keep memory that is freed, and to give it out again.

    XLA's CPU backend allocates the memory of a program at each of its runs. By default glibc gives
    large pieces back to the system, which has to zero each page anew: up to half the time of a
    small training step. It has to be told before there are threads, which get memory of their own.
    Whoever has set `MALLOC_...` or `GLIBC_TUNABLES` is left alone, and so are other libraries.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):  # macOS, Windows.
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # As malloc.h has them.
    mallopt(arena_max, 1)
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)


_keep_memory()
