"""An independent judge of class-conditional samples: a support vector machine on the pixels."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.spatial.distance import pdist

from nvg_jax.errors import UserError


def _pixels(images: UInt8[np.ndarray, "N H W 3"]) -> Float[np.ndarray, "N P"]:
    grey = images.mean(axis=-1) / 255.0
    return grey.reshape(len(images), -1)


def train_classifier(images: UInt8[np.ndarray, "N H W 3"], labels: Int[np.ndarray, "N"]) -> Any:
    """Learns the classes of real images from their grey values: a fitted `SVC`."""
    # Not at the top: it takes a second, and few jobs need it.
    from sklearn.svm import SVC

    return SVC().fit(_pixels(images), labels)


def class_agreement(
    classifier: Any, samples: UInt8[np.ndarray, "N H W 3"], labels: Int[np.ndarray, "N"]
) -> float:
    """Share of the samples that the classifier assigns to the class they were requested for.

    Raises UserError if the samples have another number of pixels than the classifier's images.
    """
    pixels = _pixels(samples)
    if pixels.shape[1] != classifier.n_features_in_:
        raise UserError(
            f"samples of {samples.shape[1]} x {samples.shape[2]} pixels cannot be judged by a "
            f"classifier of {classifier.n_features_in_} pixels: use the same resolution"
        )
    return float(np.mean(classifier.predict(pixels) == labels))


def diversity(
    samples: UInt8[np.ndarray, "N H W 3"],
    labels: Int[np.ndarray, "N"],
    real: UInt8[np.ndarray, "M real_H real_W 3"],
    real_labels: Int[np.ndarray, "M"],
) -> float:
    """Mean distance between samples of one class, relative to real images of that class.

    The distance is the l2 distance of the grey values, over all pairs of a class; the result is
    the mean over the classes of the samples. 0: all samples of a class are alike; 1: as diverse as
    the real images. Raises UserError if a class has fewer than two samples or real images, or the
    resolutions differ.
    """
    if samples.shape[1:] != real.shape[1:]:
        raise UserError(
            f"samples of {samples.shape[1]} x {samples.shape[2]} pixels cannot be compared with "
            f"real images of {real.shape[1]} x {real.shape[2]}: use the same resolution"
        )
    ratios = []
    for label in np.unique(labels):
        ours, theirs = samples[labels == label], real[real_labels == label]
        for name, images in (("samples", ours), ("real images", theirs)):
            if len(images) < 2:
                raise UserError(
                    f"class {label} has {len(images)} {name}: diversity needs two or more"
                )
        ratios.append(pdist(_pixels(ours)).mean() / pdist(_pixels(theirs)).mean())
    return float(np.mean(ratios))
