"""Whether structure maps follow the objects in images."""

import math
from typing import Any

import numpy as np
from jaxtyping import Array, Int, UInt8

from nvg_jax import keys
from nvg_jax.evaluation import segmentation
from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.streams import Seen


class StructureMIoU(Metric):
    """How well the structure maps of the split follow its objects, by stage.

    structure_miou: mean IoU between the clusters of a stage, in their best assignment to object and
    background, and the mask. structure_miou_random: that of random structures, which is chance.
    UserError while looking if the masks are of several objects.
    """

    streams = ("split",)
    needs = frozenset({"masks"})

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._rng = np.random.default_rng(keys.integer(self.config.seed, "random structures"))

    def look(self, seen: Seen) -> tuple[Int[Array, "B L"], UInt8[Array, "B height width"]]:
        return seen.sequence.structure, seen.masks

    def update(self, rows: tuple[np.ndarray, np.ndarray]) -> None:
        structure, masks = rows
        masks = segmentation.object_masks(masks, self.config.data.dataset)
        grid = (math.isqrt(structure.shape[1]),) * 2  # Images are square.
        # Drawn row by row, so that the sizes of the batches make no difference.
        random = self._rng.random(structure.shape).argsort(axis=1)
        of_maps = [segmentation.structure_miou(maps, masks, grid) for maps in (structure, random)]
        self.parts.append(np.stack(of_maps, axis=1))

    def result(self, resources: Resources) -> dict[str, Any]:
        found, chance = np.concatenate(self.parts).mean(axis=0).tolist()
        return {"structure_miou": found, "structure_miou_random": chance}
