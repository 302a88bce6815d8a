"""Programs compiled ahead of time, for devices that need not be there, and what they need."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.errors import JaxRuntimeError
from jax.experimental import topologies
from jax.sharding import Mesh

from nvg_jax import hlo
from nvg_jax.errors import UserError
from nvg_jax.progress import Progress

_USED = re.compile(r"(Used |HLO temporaries \()([\d.]+)([KMGT]?)")
_USABLE = 0.98  # Of a chip's memory; the rest is the runtime's.
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program.

    memory: bytes of a device, of which `state` are those of the training's state, or of all
    arguments of a function. traffic: None if it does not fit.
    """

    memory: int
    state: int
    traffic: hlo.Traffic | None


def topology_devices(name: str) -> Sequence[jax.Device]:
    """The devices of a topology as 'v5e:16x16', which need not be there, or of 'local'."""
    if name == "local":
        return jax.devices()
    # Nothing runs there, and nothing here but on the CPU. libtpu would look for a TPU and wait,
    # and only one process could load it.
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", name.replace(":", "-"))
    try:
        # Elsewhere a chip is one device anyway; only v4 could also be two.
        options = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except JaxRuntimeError as error:
        reason = " ".join(str(error).split())
    except (RuntimeError, NotImplementedError, ImportError, ValueError):
        reason = "libtpu is missing: run `pip install -r requirements-compile.txt`"
    raise UserError(
        f"cannot compile for config.compile.topology={name!r} ({reason}): name one as v5e:16x16, "
        "v5p:4x4x8, v4:4x4x4, v6e:8x8, or 'local'"
    )


def compile_step(step: Any, mesh: Mesh, state: Any, *others: Any) -> Compiled:
    """Compiles a step, as `loop.make_step` gives it, for abstract arguments in their places."""
    with Progress("compiling", 1, "program"):
        return _compile(step, mesh, _bytes_of_a_device(state), state, *others)


def compile_program(function: Callable[..., Any], mesh: Mesh, *args: Any) -> Compiled:
    """Compiles a function for abstract arguments in their places, all of which count as `state`."""
    program = jax.jit(function, keep_unused=True)
    return _compile(program, mesh, _bytes_of_a_device(args), *args)


def _bytes_of_a_device(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _compile(program: Any, mesh: Mesh, state_bytes: int, *args: Any) -> Compiled:
    try:
        with jax.set_mesh(mesh):
            compiled = program.trace(*args).lower().compile()
    except JaxRuntimeError as error:
        needed = memory_needed(str(error), state_bytes)
        if needed is None:
            raise
        return Compiled(needed, state_bytes, None)
    sizes = compiled.memory_analysis()
    memory = (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
        + sizes.generated_code_size_in_bytes
    )
    return Compiled(memory, state_bytes, hlo.traffic(compiled.as_text()))


def memory_needed(message: str, state: int) -> int | None:
    """The memory that a program would need, from XLA's message that it does not fit.

    state: bytes that it takes and gives back, which XLA counts in some messages and not in others.
    None for other messages.
    """
    used = _USED.search(message)
    if "RESOURCE_EXHAUSTED" not in message or not used:
        return None
    needed = round(float(used[2]) * _UNITS[used[3]])
    return needed if used[1] == "Used " else needed + state


def largest_that_fits(compile_for: Callable[[int], Compiled], few: int, limit: int) -> int:
    """The largest number of images of a device, at most 16 times `few`, whose step fits; 0 if none.

    Memory grows nearly in a line with them: two numbers are compiled, and what follows from them is
    tried.
    """
    compile_for = functools.cache(compile_for)

    def fits(images: int) -> bool:
        return compile_for(images).memory <= limit and compile_for(images).traffic is not None

    def on_the_line(images: int) -> int:
        """As many as would fit if memory grew in a line through `few` and `images`."""
        start = compile_for(few).memory
        by_image = (compile_for(images).memory - start) / (images - few)
        return int(few + (_USABLE * limit - start) / max(by_image, 1.0))

    images = max(min(on_the_line(2 * few), 16 * few), 0)
    while images and not fits(images):
        images = max(min(on_the_line(images), images - 1), 0) if images != few else images - 1
    return images
