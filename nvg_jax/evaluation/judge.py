"""An independent judge of classes: a support vector machine on grey values."""

import numpy as np
from jaxtyping import Float, Int, UInt8
from sklearn.svm import SVC

from nvg_jax.errors import UserError

MAX_IMAGES = 10_000  # The time of fitting grows with their square.
_BLOCK = 1000  # Images that are judged at a time.


def grey_values(
    images: UInt8[np.ndarray, "N height width 3"],
) -> Float[np.ndarray, "N height*width"]:
    """In [0, 1]."""
    grey = images.mean(axis=-1) / 255.0
    return grey.reshape(len(images), -1)


def fit(images: UInt8[np.ndarray, "N height width 3"], labels: Int[np.ndarray, "N"]) -> SVC:
    """A judge that has learned the classes of real images, at most MAX_IMAGES drawn of them."""
    chosen = np.random.default_rng(0).permutation(len(images))[:MAX_IMAGES]
    return SVC().fit(grey_values(images[chosen]), labels[chosen])


def class_agreement(
    judge: SVC, samples: UInt8[np.ndarray, "N height width 3"], labels: Int[np.ndarray, "N"]
) -> float:
    """Share of the samples that the judge assigns to the class they were requested for.

    Raises UserError if the samples have another number of pixels than the judge's images.
    """
    height, width = samples.shape[1:3]
    if height * width != judge.n_features_in_:
        raise UserError(
            f"samples of {height} x {width} pixels cannot be judged by a classifier of "
            f"{judge.n_features_in_} pixels: use the same resolution"
        )
    right = 0
    for start in range(0, len(samples), _BLOCK):
        rows = slice(start, start + _BLOCK)
        right += np.sum(judge.predict(grey_values(samples[rows])) == labels[rows])
    return float(right / len(samples))
