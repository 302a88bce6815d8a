"""Precision and recall: whether samples are like real images, and as various."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Float64

from nvg_jax.errors import UserError
from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.streams import Seen
from nvg_jax.progress import track

_BLOCK = 500  # Rows that are compared at a time.
# Squared distances of unit vectors below this are rounding errors.
_ROUNDING = 1e-12


class PrecisionRecall(Metric):
    """Of all samples against the images of the reference, by their pool features."""

    streams = ("samples",)
    needs = frozenset({"features", "reference", "reference_images"})
    least_samples = 4
    meaningful_from = 2000

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._features, self._count = None, 0

    def look(self, seen: Seen) -> Float[Array, "B D"]:
        return seen.features.pool

    def update(self, rows: Float[np.ndarray, "B D"]) -> None:
        if self._features is None:
            self._features = np.empty((self.num_samples, rows.shape[1]), np.float32)
        self._features[self._count : self._count + len(rows)] = rows
        self._count += len(rows)

    def result(self, resources: Resources) -> dict[str, Any]:
        precision, recall = precision_recall(resources.reference.features, self._features)
        return {"precision": precision, "recall": recall}


def precision_recall(
    real: Float[np.ndarray, "M D"], samples: Float[np.ndarray, "N D"], neighbours: int = 3
) -> tuple[float, float]:
    """Share of the samples inside the manifold of the real images, and the reverse (Kynkäänniemi
    et al., "Improved Precision and Recall Metric for Assessing Generative Models", 2019).

    An image is inside a manifold if for at least one member it is no further away than that
    member's k-th nearest fellow member, k = `neighbours`. Memory does not grow with M N. Raises
    UserError if either side has not more than `neighbours` images.
    """
    for name, images in (("real images", real), ("samples", samples)):
        if len(images) <= neighbours:
            raise UserError(
                f"precision and recall with {neighbours} neighbours need at least "
                f"{neighbours + 1} {name}: there are {len(images)}"
            )
    real_radii, sample_radii = (
        # Each image is its own nearest.
        np.concatenate([np.partition(x, neighbours)[:, neighbours] for x in _distances(own, own)])
        for own in (real, samples)
    )
    inside_real, inside_samples = [], np.zeros(len(real), bool)
    for block, distances in zip(_blocks(samples), _distances(samples, real), strict=True):
        inside_real.append(np.any(distances <= real_radii, axis=1))
        inside_samples |= np.any(distances <= sample_radii[block, None], axis=0)
    return float(np.concatenate(inside_real).mean()), float(inside_samples.mean())


def _distances(
    a: Float[np.ndarray, "M D"], b: Float[np.ndarray, "N D"]
) -> Iterator[Float64[np.ndarray, "rows N"]]:
    """Squared distances of some of `a` to all of `b` at a time; exactly 0 for equal images."""
    for rows in track(_blocks(a), "precision and recall", unit="block"):
        parts = [_squared_distances(a[rows], b[columns]) for columns in _blocks(b)]
        yield np.concatenate(parts, axis=1)


def _squared_distances(
    a: Float[np.ndarray, "M D"], b: Float[np.ndarray, "N D"]
) -> Float64[np.ndarray, "M N"]:
    """|a|^2 + |b|^2 - 2ab."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.einsum("md,md->m", a, a)[:, None] + np.einsum("nd,nd->n", b, b)
    distances = norms - 2 * (a @ b.T)
    # Copies of one image lie on a manifold of radius 0, where the difference would decide by luck.
    distances[distances < _ROUNDING * norms] = 0
    return distances


def _blocks(rows: np.ndarray) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, len(rows), _BLOCK)]
