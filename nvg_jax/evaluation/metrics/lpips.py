"""LPIPS, the learned perceptual distance, of reconstructions."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.streams import Seen
from nvg_jax.frozen.lpips import check_size


class LPIPS(Metric):
    """Mean over the split."""

    needs = frozenset({"lpips"})
    streams = ("split",)

    def __init__(self, *args: Any):
        super().__init__(*args)
        check_size(self.config.data.image_size, "take it out of config.evaluation.metrics")

    def look(self, seen: Seen) -> Float[Array, "B"]:
        return seen.networks["lpips"](seen.images, seen.reconstructions)

    def result(self, resources: Resources) -> dict[str, Any]:
        return {"lpips": float(np.concatenate(self.parts).mean(dtype=np.float64))}
