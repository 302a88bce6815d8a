"""Distributions of features as Gaussians, and how far they are apart, in float64."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from scipy import linalg

from nvg_jax.errors import UserError

_BLOCK = 1000  # Rows that are turned to float64 at a time.


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
