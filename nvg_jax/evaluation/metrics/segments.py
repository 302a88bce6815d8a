"""What structure maps tell of the segments of images, beside what says nothing of them."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from nvg_jax import clustering, granularity, pixels
from nvg_jax.errors import UserError
from nvg_jax.evaluation import segmentation
from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.streams import Seen


class SegmentsMetric(Metric):
    """How well the clusters of each stage can tell the segments of the split's masks.

    segments_accuracy, segments_miou, segments_boundary_recall: of `segmentation.Segments`, means
    over images, by stage. With `_random`, `_spatial` and `_slic` after their names those of the
    clusterings of these names, and of SLIC superpixels, at most as many as the stage has clusters,
    which may lie at any pixel.
    """

    streams = ("split",)
    needs = frozenset({"masks"})

    def __init__(self, *args: Any):
        super().__init__(*args)
        try:
            from skimage.segmentation import slic
        except ImportError:
            raise UserError(
                "the metric segments compares with superpixels: install requirements-segments.txt"
            ) from None
        self._slic = slic

    def look(
        self, seen: Seen
    ) -> tuple[Int[Array, "B L"], UInt8[Array, "B height width 3"], UInt8[Array, "B height width"]]:
        return seen.sequence.structure, pixels.to_uint8(seen.images), seen.masks

    def update(self, rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        length, size = rows[0].shape[1], rows[2].shape[1:]
        stages = range(granularity.last_stage(length) + 1)

        def maps(structure: Int[Array | np.ndarray, "L"]) -> list[np.ndarray]:
            return [_per_pixel(np.asarray(structure), stage, size) for stage in stages]

        any_latent = jnp.zeros((1, length, 1))
        others = {
            "_random": maps(clustering.random(any_latent)[0]),
            "_spatial": maps(clustering.spatial(any_latent)[0]),
        }
        for structure, image, mask in zip(*rows, strict=True):
            slic = [self._slic(image, n_segments=2**stage, channel_axis=-1) for stage in stages]
            compared = {"": maps(structure), **others, "_slic": slic}
            self.parts.append(
                {
                    f"segments_{field}{name}": found
                    for name, by_stage in compared.items()
                    for field, found in zip(
                        segmentation.Segments._fields,
                        np.array([segmentation.segments(x, mask) for x in by_stage]).T,
                        strict=True,
                    )
                }
            )

    def result(self, resources: Resources) -> dict[str, Any]:
        return {
            name: np.mean([part[name] for part in self.parts], axis=0).tolist()
            for name in self.parts[0]
        }


def _per_pixel(
    structure: Int[np.ndarray, "L"], stage: int, shape: tuple[int, int]
) -> Int[np.ndarray, "height width"]:
    """The labels of a stage of square images, position by position in blocks of pixels."""
    side = math.isqrt(len(structure))
    labels = granularity.labels_at(structure[None], stage).reshape(side, side)
    return labels.repeat(shape[0] // side, axis=0).repeat(shape[1] // side, axis=1)
