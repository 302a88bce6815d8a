"""How near generated images come to real ones, measured on a network's features, in float64."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from scipy import linalg, special
from tqdm import tqdm

from nvg_jax.errors import UserError

_BLOCK = 1000  # Rows that are turned to float64, or compared, at a time.
# Squared distances of unit vectors below this are rounding errors.
_ROUNDING = 1e-12


class Statistics(NamedTuple):
    """Mean and covariance of the features of a set of images."""

    mean: Float64[np.ndarray, "D"]
    covariance: Float64[np.ndarray, "D D"]


class Accumulator:
    """Statistics of features that come in parts, of which only sums are kept.

    The features are taken in by blocks of a fixed number of images, so that the sizes of the parts
    make no difference.
    """

    def __init__(self) -> None:
        self._waiting: list[np.ndarray] = []
        self._count = 0
        self._mean: np.ndarray | float = 0.0
        self._scatter: np.ndarray | float = 0.0  # Sum of the outer products around the mean.

    def add(self, features: Float[np.ndarray, "N D"]) -> None:
        """Takes in further images."""
        self._waiting.append(features)
        if sum(map(len, self._waiting)) >= _BLOCK:
            waiting = np.concatenate(self._waiting)
            whole = len(waiting) // _BLOCK * _BLOCK
            for start in range(0, whole, _BLOCK):
                self._merge(waiting[start : start + _BLOCK])
            self._waiting = [waiting[whole:]]

    def statistics(self) -> Statistics:
        """Mean and unbiased covariance of all; UserError for fewer than two images."""
        rest = np.concatenate(self._waiting) if self._waiting else np.zeros((0, 1))
        self._waiting = []
        if len(rest):
            self._merge(rest)
        if self._count < 2:
            raise UserError(
                f"statistics of {self._count} images have no covariance: use two or more images"
            )
        return Statistics(self._mean, self._scatter / (self._count - 1))

    def _merge(self, block: Float[np.ndarray, "N D"]) -> None:
        """Chan et al., "Algorithms for Computing the Sample Variance", 1983."""
        block = block.astype(np.float64)
        mean = block.mean(axis=0)
        centred, count = block - mean, self._count + len(block)
        shift = mean - self._mean
        weight = self._count * len(block) / count
        self._scatter = self._scatter + centred.T @ centred + weight * np.outer(shift, shift)
        self._mean = self._mean + shift * (len(block) / count)
        self._count = count


def statistics(features: Float[np.ndarray, "N D"]) -> Statistics:
    """Mean and unbiased covariance. Raises UserError for fewer than two images."""
    accumulator = Accumulator()
    accumulator.add(features)
    return accumulator.statistics()


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The squared Fréchet distance of two Gaussians; FID on Inception's features (Heusel et al.,
    "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017).

    |mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A^1/2 B A^1/2)^1/2), never negative. Raises
    UserError if the statistics are of different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(
            f"statistics of {len(a.mean)} features cannot be compared with statistics of "
            f"{len(b.mean)}: make both with the same network"
        )
    # With A = F F^T and B = G G^T, the last trace is the sum of the singular values of F^T G.
    overlap = _factor(a.covariance).T @ _factor(b.covariance)
    squared = (
        np.sum((a.mean - b.mean) ** 2)
        + np.trace(a.covariance)
        + np.trace(b.covariance)
        - 2 * linalg.svdvals(overlap).sum()
    )
    return max(0.0, float(squared))


def _factor(covariance: Float64[np.ndarray, "D D"]) -> Float64[np.ndarray, "D rank"]:
    """F with F F^T = covariance, without the directions that fewer images than features lack."""
    values, vectors = linalg.eigh(covariance)
    # The root would blow up the rounding errors of what should be zeros.
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def inception_score(
    logits: Float[np.ndarray, "N classes"], split_size: int = 5000
) -> tuple[float, float]:
    """exp(mean KL(p(class | image) || p(class))) of Salimans et al., "Improved Techniques for
    Training GANs", 2016: mean and standard deviation over consecutive splits.

    As in the ADM evaluation suite, a split has `split_size` images, and the last, which may have
    fewer, weighs as much as the others. Raises UserError if there are no images.
    """
    if not len(logits):
        raise UserError("the Inception Score needs at least one image: none was given")
    scores = []
    for start in range(0, len(logits), split_size):
        split = logits[start : start + split_size].astype(np.float64)
        probabilities = special.softmax(split, axis=1)
        divergence = special.rel_entr(probabilities, probabilities.mean(axis=0)).sum(axis=1)
        scores.append(np.exp(divergence.mean()))
    return float(np.mean(scores)), float(np.std(scores))


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
    real_radii = _neighbour_distances(real, neighbours)
    sample_radii = _neighbour_distances(samples, neighbours)
    inside_real = np.zeros(len(samples), bool)
    inside_samples = np.zeros(len(real), bool)
    pairs = list(itertools.product(_blocks(len(real)), _blocks(len(samples))))
    for rows, columns in _with_progress(pairs):
        distances = _squared_distances(real[rows], samples[columns])
        inside_real[columns] |= np.any(distances <= real_radii[rows, None], axis=0)
        inside_samples[rows] |= np.any(distances <= sample_radii[columns], axis=1)
    return float(inside_real.mean()), float(inside_samples.mean())


def _neighbour_distances(
    features: Float[np.ndarray, "N D"], neighbours: int
) -> Float64[np.ndarray, "N"]:
    """Squared distance of each image to its k-th nearest other image."""
    nearest = np.full((len(features), neighbours), np.inf)

    def offer(rows: slice, distances: Float64[np.ndarray, "rows others"]) -> None:
        candidates = np.concatenate([nearest[rows], distances], axis=1)
        nearest[rows] = np.partition(candidates, neighbours - 1, axis=1)[:, :neighbours]

    pairs = list(itertools.combinations_with_replacement(_blocks(len(features)), 2))
    for rows, others in _with_progress(pairs):
        distances = _squared_distances(features[rows], features[others])
        if rows == others:
            np.fill_diagonal(distances, np.inf)
        else:
            offer(others, distances.T)
        offer(rows, distances)
    return nearest.max(axis=1)


def _squared_distances(
    a: Float[np.ndarray, "M D"], b: Float[np.ndarray, "N D"]
) -> Float64[np.ndarray, "M N"]:
    """|a|^2 + |b|^2 - 2ab of all pairs; exactly 0 for equal images."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.einsum("md,md->m", a, a)[:, None] + np.einsum("nd,nd->n", b, b)
    distances = norms - 2 * (a @ b.T)
    # Copies of one image lie on a manifold of radius 0, where the difference would decide by luck.
    distances[distances < _ROUNDING * norms] = 0
    return distances


def _with_progress(pairs: list[tuple[slice, slice]]) -> Iterable[tuple[slice, slice]]:
    """Shows a progress bar if it takes long."""
    return tqdm(pairs, "precision and recall", unit="block", disable=None, delay=5)


def _blocks(count: int) -> Iterator[slice]:
    """Consecutive ranges of at most _BLOCK rows."""
    for start in range(0, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))
