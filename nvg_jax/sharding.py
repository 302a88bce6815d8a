"""The device mesh, the names of arrays' axes and their places on it.

The mesh has three axes: `data`, over which batches are split; `fsdp`, over which batches are split
as well, and parameters with all that the optimizer keeps of them; `tensor`, over which the inner
width of the blocks is split. Axes of parameters have logical names, which RULES map to the mesh.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from nvg_jax import pixels
from nvg_jax.errors import UserError

T, Tree = TypeVar("T"), Any
log = logging.getLogger(__name__)

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# batch: images. embed: the width that blocks read and write. hidden: the width inside of a block,
# which the next layer sums up. layers: blocks of a stack.
RULES = (("batch", BATCH_AXES), ("embed", "fsdp"), ("hidden", "tensor"), ("layers", None))


def create_mesh(
    sizes: ConfigDict | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh of all devices of all processes, or of `devices`.

    sizes: of each of AXES, as in `config.mesh`; one of them may be -1, which is what the others
    leave. By default all devices are along `data`.

    UserError if the sizes are not those of the devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [1, 1, 1] if sizes else [len(devices), 1, 1]
    if sizes:
        shape = [sizes[axis] for axis in AXES]
        known = math.prod(size for size in shape if size != -1)
        given = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
        if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
            raise UserError(f"config.mesh has {given}: give positive sizes, or one -1 for the rest")
        shape = [len(devices) // known if size == -1 else size for size in shape]
        if math.prod(shape) != len(devices):
            raise UserError(
                f"config.mesh has {given}, which does not share out {len(devices)} device(s): set "
                "--config.mesh.data, .fsdp and .tensor, one of them to -1 for the rest"
            )
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def num_batch_shards(mesh: Mesh) -> int:
    """How many parts a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def process_share(mesh: Mesh) -> tuple[int, int]:
    """Which part of a batch this process reads, and how many parts there are.

    Processes whose devices are along `tensor` alone read the same part. UserError if processes
    share some of their images, but not all.
    """
    shards = mesh.devices.reshape(num_batch_shards(mesh), -1)
    rows: dict[int, set[int]] = {}
    for row, devices in enumerate(shards):
        for device in devices:
            rows.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(of_one)) for of_one in rows.values()})
    if sum(map(len, parts)) != len(shards) or len(set(map(len, parts))) > 1:
        raise UserError(
            f"config.mesh.tensor={mesh.shape['tensor']} crosses the bounds of processes: choose a "
            "divisor or a multiple of the devices of a process"
        )
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def process_batch_size(batch_size: int, mesh: Mesh, name: str) -> int:
    """This process's share of a global batch; UserError if the devices cannot share it equally."""
    shards = num_batch_shards(mesh)
    if batch_size % shards:
        raise UserError(
            f"{name}={batch_size} is not divisible by the {shards} devices that share a batch: "
            f"choose a multiple of {shards}"
        )
    return batch_size // process_share(mesh)[1]


def place_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Joins the processes' shares, NumPy arrays, to global arrays split over the mesh.

    Images (`image`) of bytes, a quarter of the numbers to hand over, become float32 there.
    """
    sharding = batch_sharding(mesh)
    parts = process_share(mesh)[1]

    def place(x: np.ndarray) -> jax.Array:
        shape = (len(x) * parts, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding, x, shape)

    placed = jax.tree.map(place, batch)
    if "image" in placed and placed["image"].dtype == np.uint8:
        placed["image"] = pixels.from_uint8(placed["image"])
    return placed


def place_copies(tree: Tree, sharding: NamedSharding) -> Tree:
    """Makes global arrays of a tree of arrays that every process holds as a whole."""
    return jax.device_put(jax.tree.map(np.asarray, tree), sharding)


def on_host(tree: Tree) -> Tree:
    """NumPy arrays of a tree, whole on every process.

    Where parts of an array are with other processes, these have to call this as well.
    """

    def fetch(x: jax.Array | np.ndarray) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            x = multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(fetch, tree)


class _Named(nn.LogicallyPartitioned):
    """A parameter with the names of its axes. They are looked up, and never change it."""

    def unbox(self, apply_constraint: bool = True) -> Any:
        return self.value


def named(init: Callable[..., jax.Array], *names: str | None) -> Callable[..., _Named]:
    """An initialiser whose parameter has logical names for its axes; None for an axis in one."""
    return functools.partial(_make_named, init, names)


def _make_named(
    init: Callable[..., jax.Array], names: tuple[str | None, ...], *args: Any, **options: Any
) -> _Named:
    return _Named(init(*args, **options), names)


def unnamed(tree: Tree) -> Tree:
    """The arrays of a tree without the names of their axes."""
    return nn.meta.unbox(tree)


def abstract(function: Callable[..., Tree], mesh: Mesh, *args: Any) -> Tree:
    """Shapes, dtypes and places of what an initialiser makes, without the names of the axes.

    An axis whose length the mesh's axis does not divide is not split, which is said once.
    """
    made = jax.eval_shape(function, *args)

    def place(leaf: jax.ShapeDtypeStruct, names: PartitionSpec) -> jax.ShapeDtypeStruct:
        axes: list[str | None] = []
        for length, axis in zip(leaf.shape, nn.logical_to_mesh_axes(names, RULES), strict=False):
            size = mesh.shape[axis] if axis else 1
            if length % size:
                _say_once(f"{size} devices along {axis} cannot share axes of {length}: kept whole")
            axes.append(axis if size > 1 and length % size == 0 else None)
        while axes and axes[-1] is None:
            axes.pop()  # As jit writes the shardings of its results: equal places compile once.
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, unnamed(made), nn.get_partition_spec(made))


def make(function: Callable[..., Tree], *args: Any, like: Tree = None) -> Tree:
    """What an initialiser makes, without names; each array in its place in `like`, if given.

    On CPUs it is compiled as it is: many small random arrays take XLA a minute to optimize and a
    fraction of a second to run without.
    """
    traced_once = jax.jit(function)  # With the same arguments, as in `abstract`.
    options = None
    if jax.default_backend() == "cpu":
        options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    made = jax.jit(
        lambda *args: unnamed(traced_once(*args)),
        out_shardings=of(like),
        compiler_options=options,
    )
    return made(*args)


def of(tree: Tree) -> Tree:
    """The shardings of a tree's arrays, which may be abstract."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def split_batch(x: jax.Array) -> jax.Array:
    """Inside of jit with a mesh set: an array whose leading axis is split as batches are."""
    return nn.with_logical_constraint(x, ("batch",) + (None,) * (x.ndim - 1), rules=RULES)


def by_device(function: Callable[..., jax.Array], *batch: jax.Array) -> jax.Array:
    """Inside of jit: every device applies `function` to its own part of arrays, along axis 0.

    So no device waits for another, whatever the function's loops depend on. With no mesh set, or
    inside of a shard_map, the function is applied as it is. A batch that the devices cannot share
    equally is computed as a whole by each, which is said once.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return function(*batch)
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
    shards = math.prod(mesh.shape[axis] for axis in axes)
    split = PartitionSpec(axes)
    if batch[0].shape[0] % shards:
        split = PartitionSpec()
        _say_once(
            f"a batch of {batch[0].shape[0]} cannot be shared by {shards} devices: each of them "
            "works on all of it"
        )
    # check_vma off: loops' initial values are constants, which the check takes for replicated.
    return jax.shard_map(function, in_specs=split, out_specs=split, check_vma=False)(*batch)


def one_ahead(dispatched: Iterable[T]) -> Iterator[T]:
    """Each item once the next is there: the devices have work while the host waits for one."""
    return (item for item, _ in itertools.pairwise(itertools.chain(dispatched, (None,))))


@functools.cache
def _say_once(message: str) -> None:
    log.info("%s", message)
