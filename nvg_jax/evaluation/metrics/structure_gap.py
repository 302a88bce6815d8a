"""What generated structure costs: samples with the real structure of some stages against none."""

from typing import Any

import numpy as np
from jaxtyping import Array, Int

from nvg_jax import granularity
from nvg_jax.evaluation import metric, plot, streams
from nvg_jax.evaluation.archive import Samples
from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.streams import Seen
from nvg_jax.generator.given import given_structure
from nvg_jax.progress import track


class StructureGap(Metric):
    """Quality of samples that are given the real structure of the first k stages.

    structure_gap_stages: the numbers k, of `config.evaluation.structure_gap.stages`; by default 0,
    which is nothing given, and 2, ..., K (the structure of stage 0 alone says nothing, and what
    comes after K stages only tells the two positions of a pair apart).
    structure_gap_<name>: by k, what each of `config.evaluation.structure_gap.metrics` finds in
    `num_samples` samples. Their structures and classes are those of the images of the split, again
    from the first on when there are no more, and their noise is the same for all k. A plot goes to
    `evaluation/structure_gap.png`.
    """

    streams = ("split",)
    needs = frozenset({"generator"})

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.settings = self.config.evaluation.structure_gap
        kinds = metric.kinds(self.settings.metrics, self.settings.num_samples).values()
        self.needs = self.needs.union(*(kind.needs for kind in kinds))
        self.meaningful_from = max(kind.meaningful_from for kind in kinds)
        self.limit = self.settings.num_samples

    @property
    def num_images(self) -> int:
        return self.settings.num_samples

    def look(self, seen: Seen) -> tuple[Int[Array, "B L"], Int[Array, "B"]]:
        return seen.sequence.structure, seen.labels

    def result(self, resources: Resources) -> dict[str, Any]:
        structure, class_ids = (
            x[np.arange(self.settings.num_samples) % len(x)]
            for x in streams.concatenate(self.parts)
        )
        last_stage = granularity.last_stage(structure.shape[1])
        stages = tuple(self.settings.stages) or (0, *range(2, last_stage + 1))
        results = {"structure_gap_stages": list(stages)}
        for count in track(stages, "structure gap", unit="run"):
            given = given_structure(structure, count)
            images = resources.generate(class_ids, "structure gap", given, quiet=True)
            samples = Samples(images, class_ids)
            found = metric.of_samples(self.settings.metrics, resources, samples)
            for name, value in found.items():
                results.setdefault(f"structure_gap_{name}", []).append(value)
        panels = {
            name.removeprefix("structure_gap_").replace("_", " "): {"": values}
            for name, values in results.items()
            if name != "structure_gap_stages"
        }
        picture = plot.panels("first stages given", stages, panels)
        resources.save_picture("structure_gap.png", picture)
        return results | {"structure_gap_num_samples": self.settings.num_samples}
