"""Fréchet distances between the features of two sets of images: FID, sFID and rFID."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from nvg_jax.evaluation.distribution import Accumulator, frechet_distance
from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.streams import Seen

# Of fewer images than there are pool features, a covariance is singular.
MEANINGFUL_FROM = 2000


class FID(Metric):
    """Between the pool features of samples and of real images (Heusel et al., 2017)."""

    streams = ("samples",)
    needs = frozenset({"features", "reference"})
    least_samples = 2
    meaningful_from = MEANINGFUL_FROM
    name, layer = "fid", "pool"

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._samples = Accumulator()

    def look(self, seen: Seen) -> Float[Array, "B D"]:
        return getattr(seen.features, self.layer)

    def update(self, rows: Float[np.ndarray, "B D"]) -> None:
        self._samples.add(rows)

    def result(self, resources: Resources) -> dict[str, Any]:
        real = getattr(resources.reference, self.layer)
        return {self.name: frechet_distance(self._samples.statistics(), real)}


class SFID(FID):
    """Between features that keep their place in the image (Nash et al., 2021)."""

    needs = FID.needs | {"reference_spatial"}
    name, layer = "sfid", "spatial"


class RFID(Metric):
    """Between the pool features of the split's images and of their reconstructions, both with
    8-bit pixels."""

    streams = ("split",)
    needs = frozenset({"features"})
    meaningful_from = MEANINGFUL_FROM
    num_images = 0  # Of the split, that have been seen.

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._sides = (Accumulator(), Accumulator())

    def look(self, seen: Seen) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        return seen.features.pool, seen.reconstruction_features.pool

    def update(self, rows: tuple[Float[np.ndarray, "B D"], Float[np.ndarray, "B D"]]) -> None:
        self.num_images += len(rows[0])
        for side, features in zip(self._sides, rows, strict=True):
            side.add(features)

    def result(self, resources: Resources) -> dict[str, Any]:
        return {"rfid": frechet_distance(*(side.statistics() for side in self._sides))}
