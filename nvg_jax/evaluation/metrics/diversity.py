"""How various the samples of a class are."""

from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from scipy.spatial.distance import pdist

from nvg_jax.errors import UserError
from nvg_jax.evaluation.judge import grey_values
from nvg_jax.evaluation.metric import Metric, Resources


class Diversity(Metric):
    """Of the samples, relative to the training split."""

    needs = frozenset({"classes"})
    least_samples = 2

    def result(self, resources: Resources) -> dict[str, Any]:
        return {"diversity": diversity(*resources.samples, *resources.training_images)}


def diversity(
    samples: UInt8[np.ndarray, "N height width 3"],
    labels: Int[np.ndarray, "N"],
    real: UInt8[np.ndarray, "M real_height real_width 3"],
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
        ratios.append(pdist(grey_values(ours)).mean() / pdist(grey_values(theirs)).mean())
    return float(np.mean(ratios))
