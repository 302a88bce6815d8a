"""Real images to measure samples against, in the file format of the ADM evaluation suite.

An `.npz` file holds `mu`, `sigma` (mean and covariance of the pool features), `mu_s`, `sigma_s`
(of the spatial features) and `arr_0`, uint8 [N, H, W, 3]: images for precision and recall. A file
with `arr_0` alone is a batch of images of which the statistics are made.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Set
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from nvg_jax import files, pixels
from nvg_jax.data import pipeline
from nvg_jax.data.token_cache import fingerprint
from nvg_jax.errors import UserError
from nvg_jax.evaluation import archive, streams
from nvg_jax.evaluation.distribution import Accumulator, Statistics
from nvg_jax.frozen.weights import Frozen, PublishedFile, downloads, how_to_fetch

log = logging.getLogger(__name__)

_NUM_IMAGES = 10_000  # As many as the ADM evaluation suite's references hold.


# Its statistics are of the whole training set, as the original Inception network sees it.
PUBLISHED = PublishedFile(
    "adm_imagenet256",
    "the ADM evaluation suite's reference batch of ImageNet at 256 x 256, with 10,000 images",
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
    "VIRTUAL_imagenet256_labeled.npz",
    "ImageNet's terms of access",
)


class Reference(NamedTuple):
    """Real images, and what a network sees in them.

    images: for precision and recall; None where the file has none.
    pool, spatial: statistics of all real images' features; None if only the images are there.
    source: what they were made from, where that is known; else ''.
    features: the images' pool features, if they have been looked at.
    """

    images: UInt8[np.ndarray, "M height width 3"] | None
    pool: Statistics | None
    spatial: Statistics | None
    source: str
    features: Float[np.ndarray, "M D"] | None = None


def load(path: epath.PathLike, image_size: int) -> Reference:
    """Reads a reference; UserError if the file is none, or its images are not of this size, or its
    statistics no numbers of these shapes."""
    arrays = archive.load(path, image_size)

    def statistics(mean: str, covariance: str) -> Statistics | None:
        if mean not in arrays or covariance not in arrays:
            return None
        found = arrays[mean], arrays[covariance]
        numbers = all(array.dtype.kind in "fiu" and np.isfinite(array).all() for array in found)
        if not numbers or found[0].ndim != 1 or found[1].shape != 2 * found[0].shape:
            shapes = " and ".join(f"{array.dtype} {list(array.shape)}" for array in found)
            raise UserError(
                f"{mean} and {covariance} of {path} are {shapes}: they have to be a mean [D] and a "
                "covariance [D, D] of finite numbers"
            )
        return Statistics(*(array.astype(np.float64) for array in found))

    pool, spatial = statistics("mu", "sigma"), statistics("mu_s", "sigma_s")
    if pool is None and "arr_0" not in arrays:
        raise UserError(
            f"{path} is no reference: it has neither images (arr_0) nor statistics (mu, sigma)"
        )
    return Reference(arrays.get("arr_0"), pool, spatial, str(arrays.get("source", "")))


def given(config: ConfigDict, needs: Set[str]) -> Reference | None:
    """What `config.evaluation.reference` names, if anything; UserError if it has not what the
    metrics need."""
    path = config.evaluation.reference
    if not path or "reference" not in needs:
        return None
    if path == PUBLISHED.name:
        path = published(config.frozen.directory)
        if not path.exists():
            advice = how_to_fetch(PUBLISHED.name, config.frozen.directory)
            raise UserError(f"config.evaluation.reference: {path} is not there: {advice}")
    reference = load(path, config.data.image_size)
    if "reference_images" in needs and reference.images is None:
        raise UserError(f"{path} has no images (arr_0), which precision_recall needs")
    if "reference_spatial" in needs and reference.spatial is None and reference.pool is not None:
        raise UserError(f"{path} has no statistics for sfid (mu_s, sigma_s)")
    return reference


def published(directory: epath.PathLike = "") -> epath.Path:
    """Where the published reference is put when it is fetched; directory as of frozen networks."""
    return downloads(directory) / PUBLISHED.file_name


def of_split(config: ConfigDict, workdir: str, network: Frozen, mesh: Mesh) -> Reference:
    """The reference of the training split, made once and kept in the workdir."""
    data = config.data
    source = (
        f"{pipeline.contents(data)} {data.train_split}, {data.image_size} pixels resized by "
        f"{data.resize_ratio}, {config.evaluation.features} {fingerprint(network.variables)}"
    )
    path = epath.Path(workdir) / "reference.npz"
    if path.exists():
        try:
            reference = load(path, data.image_size)
        except UserError as error:
            raise UserError(f"{error}; remove it, and it is made again") from None
        if reference.source == source:
            return reference
        log.info("%s is of %s: it is made again", path, reference.source)
    reference = make(data, network, mesh, config.evaluation.batch_size, source)
    if jax.process_index() == 0:
        save(path, reference)
        log.info("wrote the reference of %s: %s", data.train_split, path)
    return reference


def make(
    data: ConfigDict, network: Frozen, mesh: Mesh, device_batch_size: int, source: str
) -> Reference:
    """The reference of the training split of `data`, a `config.data`, with a progress bar.

    It keeps 10,000 of the images, evenly spaced, on the disk. Raises UserError for fewer than two.
    """
    count = pipeline.num_examples(data, data.train_split)
    every = math.ceil(count / _NUM_IMAGES)
    shape = (math.ceil(count / every), data.image_size, data.image_size, 3)
    images = np.memmap(tempfile.TemporaryFile(), np.uint8, "w+", shape=shape)
    pool, spatial, features, start, kept = Accumulator(), Accumulator(), [], 0, 0
    for batch in streams.of_split(data, data.train_split, mesh, device_batch_size):
        found = streams.apply(*network, batch["image"]), pixels.to_uint8(batch["image"])
        seen, stored = streams.gather(found, batch["mask"])
        pool.add(seen.pool)
        spatial.add(seen.spatial)
        chosen = slice(-start % every, None, every)
        features.append(seen.pool[chosen])
        images[kept : kept + len(features[-1])] = stored[chosen]
        start, kept = start + len(stored), kept + len(features[-1])
    statistics = pool.statistics(), spatial.statistics()
    return Reference(images, *statistics, source, np.concatenate(features))


def looked_at(reference: Reference, network: Frozen, mesh: Mesh, batch_size: int) -> Reference:
    """With the features of the images, and statistics if there are none yet."""
    pool, spatial, features = Accumulator(), Accumulator(), []
    batches = streams.of_images(reference.images, None, mesh, batch_size, "reference")
    for seen in streams.extract(network, batches):
        pool.add(seen.pool)
        spatial.add(seen.spatial)
        features.append(seen.pool)
    reference = reference._replace(features=np.concatenate(features))
    if reference.pool is not None:
        return reference
    return reference._replace(pool=pool.statistics(), spatial=spatial.statistics())


def save(path: epath.PathLike, reference: Reference) -> None:
    """Writes a reference that `make` returned."""
    (mu, sigma), (mu_s, sigma_s) = reference.pool, reference.spatial
    arrays = {"mu": mu, "sigma": sigma, "mu_s": mu_s, "sigma_s": sigma_s}
    with files.replacing(path) as file:
        np.savez(file, arr_0=reference.images, source=reference.source, **arrays)
