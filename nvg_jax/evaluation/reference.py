"""Real images to measure samples against, in the file format of the ADM evaluation suite.

An `.npz` file holds `mu`, `sigma` (mean and covariance of the pool features), `mu_s`, `sigma_s`
(of the spatial features) and `arr_0`, uint8 [N, H, W, 3]: images for precision and recall. A file
with `arr_0` alone is a batch of images of which the statistics are made.
"""

from __future__ import annotations

import math
import zipfile
from typing import NamedTuple

import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import UInt8
from ml_collections import ConfigDict

from nvg_jax import pixels
from nvg_jax.errors import UserError
from nvg_jax.evaluation import features
from nvg_jax.evaluation.distribution import Accumulator, Statistics
from nvg_jax.frozen.weights import Frozen

_NUM_IMAGES = 10_000  # As many as the ADM evaluation suite's references hold.


class Reference(NamedTuple):
    """Real images to measure samples against.

    images: for precision and recall; None where the file has none.
    pool, spatial: statistics of all real images' features; None if only the images are there.
    source: what they were made from, where that is known; else ''.
    """

    images: UInt8[np.ndarray, "N H W 3"] | None
    pool: Statistics | None
    spatial: Statistics | None
    source: str


def make(
    data: ConfigDict, network: Frozen, mesh: Mesh, device_batch_size: int, source: str
) -> Reference:
    """The reference of the training split of `data`, a `config.data`, with a progress bar.

    It keeps 10,000 of the images, evenly spaced. Raises UserError for fewer than two images.
    """
    batches = features.of_split(data, data.train_split, mesh, device_batch_size)
    every = math.ceil(batches.num_examples / _NUM_IMAGES)
    pool, spatial, images, count = Accumulator(), Accumulator(), [], 0
    look = features.extractor(network)
    for batch in batches:
        seen = look(batch["image"])
        seen, shown = features.gather((seen, batch["image"]), batch["mask"])
        pool.add(seen.pool)
        spatial.add(seen.spatial)
        images.append(pixels.to_uint8(shown[-count % every :: every]))
        count += len(shown)
    return Reference(np.concatenate(images), pool.statistics(), spatial.statistics(), source)


def save(path: epath.PathLike, reference: Reference) -> None:
    """Writes a reference that `make` returned."""
    (mu, sigma), (mu_s, sigma_s) = reference.pool, reference.spatial
    with epath.Path(path).open("wb") as file:
        np.savez(
            file,
            arr_0=reference.images,
            mu=mu,
            sigma=sigma,
            mu_s=mu_s,
            sigma_s=sigma_s,
            source=reference.source,
        )


def load(path: epath.PathLike) -> Reference:
    """Reads a reference; UserError if the file is none."""
    arrays = load_arrays(path)

    def statistics(mean: str, covariance: str) -> Statistics | None:
        if mean not in arrays or covariance not in arrays:
            return None
        return Statistics(*(np.asarray(arrays[name], np.float64) for name in (mean, covariance)))

    reference = Reference(
        arrays.get("arr_0"),
        statistics("mu", "sigma"),
        statistics("mu_s", "sigma_s"),
        str(arrays.get("source", "")),
    )
    if reference.images is not None:
        check_images(reference.images, path)
    elif reference.pool is None:
        raise UserError(
            f"{path} is no reference: it has neither images (arr_0) nor statistics (mu, sigma)"
        )
    return reference


def load_arrays(path: epath.PathLike) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, none of which is unpickled; UserError if it cannot be read."""
    try:
        with epath.Path(path).open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise UserError(f"{path} is no .npz file: it holds a single array, without a name")
            return dict(arrays)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no .npz file: {' '.join(str(error).split())}") from None


def check_images(images: np.ndarray, path: epath.PathLike) -> None:
    """UserError if an array is no batch of images."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise UserError(
            f"arr_0 of {path} is {images.dtype} {list(images.shape)}: it has to be images, uint8 "
            "[N, H, W, 3]"
        )
