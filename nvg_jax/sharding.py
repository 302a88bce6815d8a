"""The device mesh, and the placing of batches and states on it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nvg_jax.errors import UserError

DATA_AXIS = "data"


def create_mesh() -> Mesh:
    """All devices of all processes along one axis, over which batches are split."""
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def process_batch_size(batch_size: int, mesh: Mesh, name: str) -> int:
    """This process's share of a global batch; UserError if the devices cannot share it equally."""
    if batch_size % mesh.size:
        raise UserError(
            f"{name}={batch_size} is not divisible by the {mesh.size} devices: "
            f"choose a multiple of {mesh.size}"
        )
    return batch_size // jax.process_count()


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Joins the processes' shares, trees of NumPy arrays, to global arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def place_copies(tree: Any, sharding: NamedSharding) -> Any:
    """Makes global arrays of a tree of arrays that every process holds as a whole."""
    return jax.device_put(jax.tree.map(np.asarray, tree), sharding)
