"""The structural similarity of images and their reconstructions."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nvg_jax.errors import UserError
from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.metrics.psnr import PEAK
from nvg_jax.evaluation.streams import Seen

_WINDOW = 11  # Pixels; the smallest side of an image that SSIM is defined for.
_DEVIATION = 1.5  # Pixels.
_C1, _C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


class SSIM(Metric):
    """Mean over the split."""

    streams = ("split",)

    def __init__(self, *args: Any):
        super().__init__(*args)
        check_size((self.config.data.image_size,) * 2)

    def look(self, seen: Seen) -> Float[Array, "B"]:
        return ssim(seen.images, seen.reconstructions)

    def result(self, resources: Resources) -> dict[str, Any]:
        return {"ssim": float(np.concatenate(self.parts).mean(dtype=np.float64))}


def check_size(sides: tuple[int, ...]) -> None:
    """UserError for images of a height and width that SSIM cannot look at."""
    if min(sides) < _WINDOW:
        raise UserError(
            f"SSIM looks at {_WINDOW} x {_WINDOW} pixels at a time: it cannot measure "
            f"images of {sides[0]} x {sides[1]} pixels, use larger ones"
        )


def ssim(
    images: Float[Array, "B height width C"], reconstructions: Float[Array, "B height width C"]
) -> Float[Array, "B"]:
    """Structural similarity of each image in [-1, 1], at most 1, which identical ones reach.

    As in Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity",
    2004: a Gaussian window of 11 x 11 pixels and deviation 1.5, K1 = 0.01, K2 = 0.03; the mean over
    the places where the window lies inside the image, and over the channels. Raises UserError if
    the images are smaller than the window.
    """
    check_size(images.shape[1:3])
    a, b = images.astype(jnp.float32), reconstructions.astype(jnp.float32)
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    # (2xy + c) / (x^2 + y^2 + c) = 1 - (x - y)^2 / (x^2 + y^2 + c), and so with the variances: in
    # this form identical images give 1 whatever the rounding.
    difference = (mean_a - mean_b) ** 2
    variance_of_difference = jnp.maximum(_window_mean((a - b) ** 2) - difference, 0)
    variances = jnp.maximum(_window_mean(a**2 + b**2) - mean_a**2 - mean_b**2, 0)
    # Intensities count from black, which is -1.
    luminance = 1 - difference / ((mean_a + 1) ** 2 + (mean_b + 1) ** 2 + _C1)
    structure = 1 - variance_of_difference / (variances + _C2)
    return jnp.mean(luminance * structure, axis=(1, 2, 3))


def _window_mean(x: Float[Array, "B height width C"]) -> Float[Array, "B _ _ C"]:
    """Means under the Gaussian window, in full float32 on any device."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-0.5 * (offsets / _DEVIATION) ** 2)
    weights = (weights / weights.sum()).tolist()
    height, width = (side - _WINDOW + 1 for side in x.shape[1:3])
    x = sum(weight * x[:, i : i + height] for i, weight in enumerate(weights))
    return sum(weight * x[:, :, i : i + width] for i, weight in enumerate(weights))
