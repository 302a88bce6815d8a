"""Streams of images over all devices, and what networks see in them; the same on any number.

A batch is {'image': [B height width 3] in [-1, 1], 'mask': [B], ...}, in the order of the images;
'mask' is False in rows past the end. Every device holds `device_batch_size` images at a time: what
it computes does not depend on how many others there are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from nvg_jax import pixels, sharding
from nvg_jax.data import pipeline
from nvg_jax.frozen.inception import ImageFeatures
from nvg_jax.frozen.weights import Frozen
from nvg_jax.granularity import GranularitySequence
from nvg_jax.progress import track
from nvg_jax.tokenizer.model import Tokenizer

Batch = dict[str, Any]


def of_split(
    data: ConfigDict, split: str, mesh: Mesh, device_batch_size: int, masks: bool = False
) -> Iterator[Batch]:
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
    for batch in track(batches, split, unit="batch"):
        yield sharding.place_batch(batch, mesh)


def of_images(
    images: UInt8[np.ndarray, "N height width 3"],
    labels: Int[np.ndarray, "N"] | None,
    mesh: Mesh,
    device_batch_size: int,
    description: str = "",
) -> Iterator[Batch]:
    """Images that every process holds; without a description there is no progress bar."""
    size = device_batch_size * sharding.num_batch_shards(mesh)
    starts = range(0, len(images), size)
    for start in track(starts, description, unit="batch", quiet=not description):
        index = np.arange(start, start + size)
        rows = index % len(images)
        batch = {"image": images[rows], "mask": index < len(images)}
        if labels is not None:
            batch["label"] = labels[rows]
        placed = sharding.place_copies(batch, sharding.batch_sharding(mesh))
        yield placed | {"image": pixels.from_uint8(placed["image"])}


def gather(tree: Any, mask: Bool[Array, "B"]) -> Any:
    """The rows of arrays on the devices that are none past the end, on every process."""
    tree, mask = sharding.on_host((tree, mask))
    return jax.tree.map(lambda x: x[mask], tree)


class Seen:
    """A batch inside of jit, and what networks see in it: each looks once, and if it is asked.

    stream: 'split' or 'samples'. networks: 'features' and 'lpips', as functions of images.
    """

    def __init__(self, stream: str, batch: Batch, tokenizer: nn.Module, networks: dict[str, Any]):
        self.stream, self.networks, self._tokenizer = stream, networks, tokenizer
        self.images: Float[Array, "B height width 3"] = batch["image"]
        self.labels: Int[Array, "B"] | None = batch.get("label")
        self.masks: UInt8[Array, "B height width"] | None = batch.get("segmentation_mask")

    @functools.cached_property
    def _tokenized(self) -> tuple[GranularitySequence, Float[Array, "B canvases L C"]]:
        return self._tokenizer.tokenize(self.images)

    @property
    def sequence(self) -> GranularitySequence:
        return self._tokenized[0]

    @property
    def tokens(self) -> list[Int[Array, "B _"]]:
        """Of each stage."""
        return self._tokenizer.by_stage(self.sequence.tokens)

    @functools.cached_property
    def latents(self) -> Float[Array, "B L C"]:
        """Not quantized."""
        return self._tokenizer.encode(self.images)

    @functools.cached_property
    def reconstructions(self) -> Float[Array, "B height width 3"]:
        return self._tokenizer.decode(self._tokenized[1][:, -1])

    @functools.cached_property
    def features(self) -> ImageFeatures:
        """Of the images as they are stored, with 8-bit pixels."""
        return self.networks["features"](pixels.as_stored(self.images))

    @functools.cached_property
    def reconstruction_features(self) -> ImageFeatures:
        """Of the reconstructions as they would be stored."""
        return self.networks["features"](pixels.as_stored(self.reconstructions))


def measure(
    metrics: list[Any],
    stream: str,
    batches: Iterable[Batch],
    tokenizer: Tokenizer,
    variables: Any,
    networks: dict[str, Frozen],
) -> None:
    """Shows a stream to the `metrics`, in one pass and by one program."""

    @jax.jit
    def look(variables: Any, weights: dict[str, Any], batch: Batch) -> list[Any]:
        bound = {
            name: functools.partial(network.module.apply, weights[name])
            for name, network in networks.items()
        }
        seen = Seen(stream, batch, tokenizer.bind(variables), bound)
        return [metric.look(seen) for metric in metrics]

    weights = {name: network.variables for name, network in networks.items()}
    for batch in batches:
        rows = gather(look(variables, weights, batch), batch["mask"])
        for metric, of_metric in zip(metrics, rows, strict=True):
            metric.update(of_metric)
        if all(metric.full for metric in metrics):
            break


@functools.partial(jax.jit, static_argnums=0)
def apply(module: nn.Module, variables: Any, *images: Float[Array, "B height width 3"]) -> Any:
    """What a network finds in images as they are stored; compiled once for each network."""
    return module.apply(variables, *map(pixels.as_stored, images))


def extract(network: Frozen, batches: Iterable[Batch]) -> Iterator[ImageFeatures]:
    """The features of images, batch by batch, as NumPy arrays."""
    for batch in batches:
        yield gather(apply(*network, batch["image"]), batch["mask"])


def concatenate(parts: Iterable[Any]) -> Any:
    """Joins trees of arrays along their first axes."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
