"""Whether samples follow the structure that they are given."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8

from nvg_jax import control, pixels, visualize
from nvg_jax.data import shapes
from nvg_jax.errors import UserError
from nvg_jax.evaluation import segmentation
from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.streams import Seen, concatenate
from nvg_jax.generator.given import given_structure

# Of scenes: 'images', their 'labels' and 'masks', 'structure', and 'reconstructions'.
Scenes = dict[str, Any]


class GuidedIoU(Metric):
    """IoU between the masks of scenes and the objects of samples, found by their colours.

    guided_iou: of samples that are given the mask as structure of the first
    `config.evaluation.guided.stages` stages; guided_iou_image: the first stages of the scene's own
    structure; guided_iou_free: nothing, which is chance; guided_iou_reconstruction: of the scene's
    reconstruction, which is what the tokenizer allows. All for the first
    `config.evaluation.guided.num_samples` scenes of the split and their classes; some are shown in
    `evaluation/guided.png`. UserError if there are no so many stages.
    """

    streams = ("split",)
    needs = frozenset({"masks", "generator"})

    def __init__(self, *args: Any):
        super().__init__(*args)
        if self.config.data.dataset != "shapes":
            raise UserError(
                "guided_iou tells objects by the colours of the dataset shapes: take it out of "
                f"config.evaluation.metrics for {self.config.data.dataset}"
            )
        self.limit = self.config.evaluation.guided.num_samples

    def look(self, seen: Seen) -> Scenes:
        return {
            "images": pixels.to_uint8(seen.images),
            "labels": seen.labels,
            "masks": seen.masks,
            "structure": seen.sequence.structure,
            "reconstructions": pixels.to_uint8(seen.reconstructions),
        }

    def update(self, rows: Scenes) -> None:
        rows["masks"] = segmentation.object_masks(rows["masks"], self.config.data.dataset)
        super().update(rows)

    def result(self, resources: Resources) -> dict[str, Any]:
        scenes = concatenate(self.parts)
        stages, grid = self.config.evaluation.guided.stages, resources.tokenizer.grid
        of_masks = np.stack(
            [control.structure_from_map(mask.astype(int), grid, stages) for mask in scenes["masks"]]
        )
        guides = {
            "": given_structure(of_masks, stages),
            "_image": given_structure(scenes["structure"], stages),
            "_free": None,
        }
        pictures = {"_reconstruction": scenes["reconstructions"]}
        for name, given in guides.items():
            pictures[name] = resources.generate(scenes["labels"], "guided samples", given)
        picture = _picture(of_masks, scenes, pictures, stages, grid)
        resources.save_picture("guided.png", picture)
        return {
            f"guided_iou{name}": float(
                segmentation.iou(scenes["masks"], shapes.segment(images, scenes["labels"])).mean()
            )
            for name, images in pictures.items()
        }


def _picture(
    of_masks: Int[np.ndarray, "N L"],
    scenes: Scenes,
    pictures: dict[str, UInt8[np.ndarray, "N _ _ 3"]],
    stages: int,
    grid: tuple[int, int],
) -> visualize.Picture:
    """Ten scenes in columns, and the samples with their masks and with their structures."""

    def maps(structures: np.ndarray) -> list[np.ndarray]:
        return [visualize.structure_maps(each, grid, (stages - 1,))[0] for each in structures]

    def shown(masks: np.ndarray) -> list[np.ndarray]:
        return list(map(visualize.grey, masks))

    few, of_masks, by_mask, by_image = jax.tree.map(
        lambda x: x[:10], (scenes, of_masks, pictures[""], pictures["_image"])
    )
    rows = {
        "scene": list(few["images"]),
        "mask": shown(few["masks"]),
        "given map": maps(of_masks),
        "sample": list(by_mask),
        "its object": shown(shapes.segment(by_mask, few["labels"])),
        "structure\nof the scene": maps(few["structure"]),
        "sample with\nthe structure": list(by_image),
        "object of\nthat sample": shown(shapes.segment(by_image, few["labels"])),
    }
    columns = [shapes.CLASSES[label].replace(" ", "\n") for label in few["labels"]]
    return visualize.table(list(rows.values()), columns, list(rows))
