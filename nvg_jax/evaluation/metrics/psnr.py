"""The peak signal-to-noise ratio of reconstructions."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.streams import Seen

PEAK = 2.0  # Images span [-1, 1].


class PSNR(Metric):
    """Mean over the split, in dB."""

    streams = ("split",)

    def look(self, seen: Seen) -> Float[Array, "B"]:
        return psnr(seen.images, seen.reconstructions)

    def result(self, resources: Resources) -> dict[str, Any]:
        return {"psnr": float(np.concatenate(self.parts).mean(dtype=np.float64))}


def psnr(
    images: Float[Array, "B height width C"], reconstructions: Float[Array, "B height width C"]
) -> Float[Array, "B"]:
    """Peak signal-to-noise ratio of each image in [-1, 1], in dB; infinite for identical ones."""
    error = images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
    return 10.0 * jnp.log10(PEAK**2 / jnp.mean(error**2, axis=(1, 2, 3)))
