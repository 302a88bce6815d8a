"""How much samples still vary when their first stages are given (paper, Appendix B.4)."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from nvg_jax.data import pipeline
from nvg_jax.errors import UserError
from nvg_jax.evaluation import plot, streams
from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.streams import Seen
from nvg_jax.frozen.lpips import check_size
from nvg_jax.generator.sampler import Given
from nvg_jax.granularity import GranularitySequence
from nvg_jax.progress import track

Groups = UInt8[np.ndarray, "references samples height width 3"]


class Variation(Metric):
    """Mean distance between samples that share their first stages with a reference, those before
    each painted one: if all are painted, j = 0..K of them.

    variation_structure: only the structure of the stages is given; variation_both: structure and
    content. The references are the first images of the split, the samples of their class; the
    distance is `config.evaluation.variation.distance`: 'lpips', or 'features', the Euclidean
    distance of the network's pool features. A plot goes to `evaluation/variation.png`.
    """

    streams = ("split",)
    needs = frozenset({"generator"})

    def __init__(self, *args: Any):
        super().__init__(*args)
        config, settings = self.config, self.config.evaluation.variation
        if settings.distance == "lpips":
            advice = "set config.evaluation.variation.distance to 'features'"
            check_size(config.data.image_size, advice)
        count = pipeline.num_examples(config.data, config.data.eval_split)
        if count < settings.num_references:
            raise UserError(
                f"config.evaluation.variation.num_references={settings.num_references}, but split "
                f"{config.data.eval_split!r} has {count} images"
            )
        self.needs = self.needs | {settings.distance}
        self.limit = settings.num_references

    def look(self, seen: Seen) -> tuple[GranularitySequence, Int[Array, "B"]]:
        return seen.sequence, seen.labels

    def result(self, resources: Resources) -> dict[str, Any]:
        settings = self.config.evaluation.variation
        copies, class_ids = jax.tree.map(
            lambda x: np.repeat(x, settings.num_samples, axis=0), streams.concatenate(self.parts)
        )
        results = {"variation_structure": [], "variation_both": []}
        # What is given at the last stage is all.
        stages = (0, *(stage + 1 for stage in resources.tokenizer.stages[:-1]))
        rounds = list(itertools.product(enumerate(results), stages))
        distance = {"features": _feature_distance, "lpips": _lpips_distance}[settings.distance]
        for (keep_content, name), kept in track(rounds, "variation", unit="stage"):
            given = Given(copies, kept, kept * keep_content)
            images = resources.generate(class_ids, "variation", given, quiet=True)
            groups = images.reshape(-1, settings.num_samples, *images.shape[1:])
            results[name].append(float(distance(groups, resources).mean()))
        unit = "LPIPS" if settings.distance == "lpips" else "feature distance"
        lines = zip(
            ("structure given", "structure and content given"), results.values(), strict=True
        )
        panel = {f"{unit} between samples": dict(lines)}
        picture = plot.panels("first stages given", stages, panel)
        resources.save_picture("variation.png", picture)
        return results


def _feature_distance(groups: Groups, resources: Resources) -> Float[np.ndarray, "references"]:
    """The mean distance between all pairs of images in each group."""
    seen = streams.extract(resources.networks["features"], _batches(groups, resources))
    pool = np.concatenate([features.pool for features in seen]).astype(np.float64)
    pool = pool.reshape(*groups.shape[:2], -1)
    first, second = np.triu_indices(groups.shape[1], 1)
    return np.linalg.norm(pool[:, first] - pool[:, second], axis=-1).mean(axis=1)


def _lpips_distance(groups: Groups, resources: Resources) -> Float[np.ndarray, "references"]:
    """The mean distance between all pairs of images in each group."""
    pairs = (_batches(groups[:, i], resources) for i in np.triu_indices(groups.shape[1], 1))
    lpips = resources.networks["lpips"]
    distances = [
        streams.gather(streams.apply(*lpips, a["image"], b["image"]), a["mask"])
        for a, b in zip(*pairs, strict=True)
    ]
    return np.concatenate(distances).reshape(len(groups), -1).mean(axis=1)


def _batches(groups: Groups, resources: Resources) -> Iterator[streams.Batch]:
    images = groups.reshape(-1, *groups.shape[2:])
    return streams.of_images(images, None, resources.mesh, resources.config.evaluation.batch_size)
