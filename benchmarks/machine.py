"""What a machine can do at most, measured in the run that it is compared with."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nvg_jax.errors import UserError


def batch_sizes(words: Sequence[str]) -> list[int]:
    """The numbers that `--batch_sizes` gives; UserError if it gives anything else."""
    try:
        return [int(size) for size in words]
    except ValueError:
        raise UserError(f"--batch_sizes={','.join(words)}: numbers only") from None


def best_seconds(run: Callable[[], Any], repeats: int) -> float:
    """The shortest of some runs, each waited for, after one that is not counted."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def product_rate(dtype: str) -> float:
    """Floating-point operations a second of one large matrix product, on one device."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(lambda x: x @ x)
    return 2.0 * side**3 / best_seconds(lambda: product(matrix), repeats=10)


def peak_memory() -> str:
    """The most that a device has held since the process started; on the CPU, the process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        held = stats["peak_bytes_in_use"]
    else:
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        held *= 1 if sys.platform == "darwin" else 1024
    return f"{held / 2**30:.1f} GiB"
