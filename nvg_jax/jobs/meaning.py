"""Does structure mean something? Structure maps and guided samples against segmentation masks."""

from __future__ import annotations

import logging
from collections.abc import Set
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int, UInt8
from ml_collections import ConfigDict

from nvg_jax import control, granularity, pixels, visualize
from nvg_jax.data import pipeline, shapes
from nvg_jax.errors import UserError
from nvg_jax.evaluation import features, segmentation
from nvg_jax.generator.sampler import given_structure
from nvg_jax.granularity import GranularitySequence
from nvg_jax.jobs.generation import generate, sampling_settings
from nvg_jax.jobs.model import Model, Variables, output_directory
from nvg_jax.tokenizer.model import Tokenizer

log = logging.getLogger(__name__)

METRICS = ("structure_miou", "guided_iou")


def check(config: ConfigDict, metrics: Set[str]) -> None:
    """UserError if the dataset has no masks, or for guided_iou objects of no known colour."""
    if "guided_iou" in metrics and config.data.dataset != "shapes":
        raise UserError(
            "guided_iou tells objects by the colours of the dataset shapes: take it out of "
            f"config.evaluation.metrics for {config.data.dataset}"
        )
    if metrics.intersection(METRICS):
        pipeline.evaluation_batches(config.data, config.data.eval_split, 1, masks=True)


def structure_miou(
    config: ConfigDict, tokenizer: Tokenizer, variables: Variables, mesh: Mesh
) -> dict[str, list[float]]:
    """How well the structure maps of the evaluation split follow its objects, by stage.

    structure_miou: mean IoU between the clusters of a stage, in their best assignment to object and
    background, and the mask. structure_miou_random: that of random structures, which is chance.
    UserError if the masks are of several objects.
    """
    scenes = _reconstructed_split(config, tokenizer, variables, mesh)
    structure = np.asarray(scenes.sequence.structure)
    random = np.random.default_rng(config.seed).permuted(structure, axis=1)
    results = {}
    for name, maps in (("structure_miou", structure), ("structure_miou_random", random)):
        by_stage = segmentation.structure_miou(maps, scenes.masks, tokenizer.grid)
        results[name] = by_stage.mean(axis=0).tolist()
    return results


def guided_iou(config: ConfigDict, model: Model, workdir: str, mesh: Mesh) -> dict[str, float]:
    """How well samples follow the structure that they are given.

    guided_iou: IoU between the mask of a scene, given as structure of the first
    `config.evaluation.guided.stages` stages, and the object in the sample, found by its colour;
    guided_iou_image: with the first stages of the scene's own structure; guided_iou_free: with
    nothing given, which is chance; guided_iou_reconstruction: of the scene's reconstruction, which
    is what the tokenizer allows. All for the first `config.evaluation.guided.num_samples` scenes of
    the evaluation split and their classes; some are shown in `evaluation/guided.png`.

    UserError if there are no so many stages.
    """
    scenes = _reconstructed_split(config, model.tokenizer, model.tokenizer_variables, mesh)
    scenes = jax.tree.map(lambda x: x[: config.evaluation.guided.num_samples], scenes)
    stages, grid = config.evaluation.guided.stages, model.tokenizer.grid
    of_masks = np.stack(
        [control.structure_from_map(mask.astype(int), grid, stages) for mask in scenes.masks]
    )
    guides = {
        "": given_structure(of_masks, stages),
        "_image": given_structure(scenes.sequence.structure, stages),
        "_free": None,
    }
    pictures = {"_reconstruction": scenes.reconstructions}
    for name, given in guides.items():
        batches = generate(
            model,
            sampling_settings(config),
            scenes.labels,
            config.sampling.batch_size,
            config.seed + 2,
            given,
        )
        pictures[name] = np.concatenate([images for _, images in batches])
    if jax.process_index() == 0:
        _save_picture(of_masks, scenes, pictures, stages, grid, workdir)
    return {
        f"guided_iou{name}": float(
            segmentation.iou(scenes.masks, shapes.segment(images, scenes.labels)).mean()
        )
        for name, images in pictures.items()
    }


class _Scenes(NamedTuple):
    images: UInt8[np.ndarray, "N H W 3"]
    labels: Int[np.ndarray, "N"]
    masks: Bool[np.ndarray, "N H W"]
    sequence: GranularitySequence
    reconstructions: UInt8[np.ndarray, "N H W 3"]


def _reconstructed_split(
    config: ConfigDict, tokenizer: Tokenizer, variables: Variables, mesh: Mesh
) -> _Scenes:
    @jax.jit
    def reconstruct(variables, images):
        sequence, canvases = tokenizer.apply(variables, images, method="tokenize")
        return sequence, tokenizer.apply(variables, canvases[:, -1], method="decode")

    parts = []
    split, size = config.data.eval_split, config.evaluation.batch_size
    for batch in features.of_split(config.data, split, mesh, size, masks=True):
        found = reconstruct(variables, batch["image"])
        given = (batch["image"], batch["label"], batch["segmentation_mask"])
        parts.append(features.gather((*given, *found), batch["mask"]))
    images, labels, masks, sequence, decoded = jax.tree.map(
        lambda *arrays: np.concatenate(arrays), *parts
    )
    if masks.max() > 1:
        raise UserError(
            f"the masks of {config.data.dataset} have {masks.max() + 1} segments: structure_miou "
            "is defined for two, an object (1) and its background (0)"
        )
    return _Scenes(pixels.to_uint8(images), labels, masks == 1, sequence, pixels.to_uint8(decoded))


def _save_picture(
    of_masks: Int[np.ndarray, "N L"],
    scenes: _Scenes,
    pictures: dict[str, UInt8[np.ndarray, "N H W 3"]],
    stages: int,
    grid: tuple[int, int],
    workdir: str,
) -> None:
    """Ten scenes in columns, and the samples with their masks and with their structures."""
    last_stage = granularity.last_stage(of_masks.shape[1])

    def maps(structure: np.ndarray) -> list[np.ndarray]:
        labels = structure.reshape(-1, *grid) >> (last_stage - stages + 1)
        return [visualize.structure_picture(picture, stages - 1) for picture in labels]

    def shown(masks: np.ndarray) -> list[np.ndarray]:
        return list(np.repeat(255 * masks[..., None].astype(np.uint8), 3, axis=-1))

    def found(images: np.ndarray) -> list[np.ndarray]:
        return shown(shapes.segment(images, few.labels))

    few = jax.tree.map(lambda x: x[:10], scenes)
    by_mask, by_image = pictures[""][:10], pictures["_image"][:10]
    rows = {
        "scene": list(few.images),
        "mask": shown(few.masks),
        "given map": maps(of_masks[:10]),
        "sample": list(by_mask),
        "its object": found(by_mask),
        "structure\nof the scene": maps(np.asarray(few.sequence.structure)),
        "sample with\nthe structure": list(by_image),
        "object of\nthat sample": found(by_image),
    }
    columns = [shapes.CLASSES[label].replace(" ", "\n") for label in few.labels]
    path = output_directory(workdir, "evaluation") / "guided.png"
    visualize.save_png(path, visualize.table(list(rows.values()), columns, list(rows)))
    log.info("wrote guided samples: %s", path)
