"""What a network sees in images, computed by all devices; the same for any number of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from nvg_jax import sharding
from nvg_jax.data import pipeline
from nvg_jax.frozen.inception import ImageFeatures
from nvg_jax.frozen.weights import Frozen

Batch = dict[str, Any]


def as_stored(images: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Images in [-1, 1] as they come back from a file of 8-bit pixels."""
    return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5) / 127.5 - 1


class Batches:
    """Images on the devices, in order: {'image': [B, H, W, 3] in [-1, 1], 'mask': [B], ...}.

    'mask' is False in the rows past the end. Every device holds `device_batch_size` images at a
    time: what it computes does not depend on how many others there are. Iterating shows a progress
    bar, if there is a `description`.
    """

    def __init__(self, count: int, num_batches: int, description: str, batches: Iterator[Batch]):
        self.num_examples = count
        disable = None if description else True
        self._batches = tqdm(batches, description, num_batches, unit="batch", disable=disable)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


def of_split(
    data: ConfigDict, split: str, mesh: Mesh, device_batch_size: int, masks: bool = False
) -> Batches:
    """The images of a split of the dataset that `data`, a `config.data`, describes."""
    index, count = sharding.process_share(mesh)
    batches = pipeline.evaluation_batches(
        data,
        split,
        device_batch_size * sharding.num_batch_shards(mesh) // count,
        process_index=index,
        process_count=count,
        masks=masks,
    )
    placed = (sharding.place_batch(batch, mesh) for batch in batches)
    return Batches(batches.num_examples, len(batches), split, placed)


def of_images(
    images: UInt8[np.ndarray, "N H W 3"], mesh: Mesh, device_batch_size: int, description: str = ""
) -> Batches:
    """Images that every process holds."""
    size = device_batch_size * sharding.num_batch_shards(mesh)
    starts = range(0, len(images), size)
    placement = sharding.batch_sharding(mesh)

    def placed() -> Iterator[Batch]:
        for start in starts:
            index = np.arange(start, start + size)
            batch = images[index % len(images)].astype(np.float32) / 127.5 - 1
            yield sharding.place_copies({"image": batch, "mask": index < len(images)}, placement)

    return Batches(len(images), len(starts), description, placed())


def gather(tree: Any, mask: Array) -> Any:
    """The rows of arrays on the devices that are none past the end, on every process."""
    tree, mask = sharding.on_host((tree, mask))
    return jax.tree.map(lambda x: x[mask], tree)


def extractor(network: Frozen) -> Callable[[Float[Array, "B H W 3"]], ImageFeatures]:
    """The compiled network; images are looked at as they are stored."""

    @jax.jit
    def look(variables: Any, images: Array) -> ImageFeatures:
        return network.module.apply(variables, as_stored(images))

    return lambda images: look(network.variables, images)


def extract(network: Frozen, batches: Batches) -> Iterator[ImageFeatures]:
    """The features of the images, batch by batch, as NumPy arrays."""
    look = extractor(network)
    for batch in batches:
        yield gather(look(batch["image"]), batch["mask"])


def concatenate(parts: Iterator[ImageFeatures]) -> ImageFeatures:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
