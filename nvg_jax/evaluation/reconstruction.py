"""How well images survive the tokenizer, and how much of the codebook they use."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nvg_jax import granularity
from nvg_jax.errors import UserError

PEAK = 2.0  # Images span [-1, 1].

SSIM_WINDOW = 11  # Pixels; the smallest side of an image that SSIM is defined for.
_SSIM_DEVIATION = 1.5  # Pixels.
_C1, _C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def psnr(
    images: Float[Array, "B H W C"], reconstructions: Float[Array, "B H W C"]
) -> Float[Array, "B"]:
    """Peak signal-to-noise ratio of each image in [-1, 1], in dB; infinite for identical ones."""
    error = images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
    return 10.0 * jnp.log10(PEAK**2 / jnp.mean(error**2, axis=(1, 2, 3)))


def ssim(
    images: Float[Array, "B H W C"], reconstructions: Float[Array, "B H W C"]
) -> Float[Array, "B"]:
    """Structural similarity of each image in [-1, 1], at most 1, which identical ones reach.

    As in Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity",
    2004: a Gaussian window of 11 x 11 pixels and deviation 1.5, K1 = 0.01, K2 = 0.03; the mean over
    the places where the window lies inside the image, and over the channels. Raises UserError if
    the images are smaller than the window.
    """
    height, width = images.shape[1:3]
    if min(height, width) < SSIM_WINDOW:
        raise UserError(
            f"SSIM looks at {SSIM_WINDOW} x {SSIM_WINDOW} pixels at a time: it cannot measure "
            f"images of {height} x {width} pixels, use larger ones"
        )
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


def _window_mean(x: Float[Array, "B H W C"]) -> Float[Array, "B valid_H valid_W C"]:
    """Means under the Gaussian window, in full float32 on any device."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-0.5 * (offsets / _SSIM_DEVIATION) ** 2)
    weights = (weights / weights.sum()).tolist()
    height, width = (side - SSIM_WINDOW + 1 for side in x.shape[1:3])
    x = sum(weight * x[:, i : i + height] for i, weight in enumerate(weights))
    return sum(weight * x[:, :, i : i + width] for i, weight in enumerate(weights))


def token_counts(
    tokens: Int[Array, "B M"], vocab_size: int, mask: Bool[Array, "B"] | None = None
) -> Int[Array, "S V"]:
    """How often each stage uses each code, with all images of the batch counted together.

    tokens: heaps of M = 2L - 1 codes in [0, V). Images with a false `mask` do not count.
    """
    last_stage = granularity.last_stage((tokens.shape[-1] + 1) // 2)
    weight = jnp.ones(tokens.shape[:1], jnp.int32) if mask is None else mask.astype(jnp.int32)
    counts = []
    for stage in range(last_stage + 1):
        codes = granularity.stage_tokens(tokens, stage)
        zeros = jnp.zeros((vocab_size,), jnp.int32)
        counts.append(zeros.at[codes].add(jnp.broadcast_to(weight[:, None], codes.shape)))
    return jnp.stack(counts)


def codebook_usage_by_stage(
    counts: Int[Array | np.ndarray, "S V"],
) -> tuple[Float[np.ndarray, "S"], float]:
    """Share of the codes used at least once: by each stage, and by all stages together."""
    used = np.asarray(counts) > 0
    return used.mean(axis=1), float(used.any(axis=0).mean())
