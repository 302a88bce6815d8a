"""What generated structure costs: samples with the real structure of some stages against none."""

from typing import Any

from jaxtyping import Array, Int

from nvg_jax import granularity
from nvg_jax.evaluation import metric, plot
from nvg_jax.evaluation.archive import Samples
from nvg_jax.evaluation.metric import Resources
from nvg_jax.evaluation.streams import Seen
from nvg_jax.generator.given import given_structure
from nvg_jax.progress import track


class StructureGap(metric.OfOwnSamples):
    """Quality of samples that are given the real structure of the first k stages.

    structure_gap_stages: the numbers k, of `config.evaluation.structure_gap.stages`; by default 0,
    which is nothing given, and 2, ..., K (the structure of stage 0 alone says nothing, and what
    comes after K stages only tells the two positions of a pair apart).
    structure_gap_<name>: by k, what each of `config.evaluation.structure_gap.metrics` finds in
    `num_samples` samples. Their structures and classes are those of the images of the split, again
    from the first on when there are no more, and their noise is the same for all k. A plot goes to
    `evaluation/structure_gap.png`.
    """

    name = "structure_gap"

    def look(self, seen: Seen) -> tuple[Int[Array, "B L"], Int[Array, "B"]]:
        return seen.sequence.structure, seen.labels

    def result(self, resources: Resources) -> dict[str, Any]:
        structure, class_ids = self.rows()
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
        return results | {"structure_gap_num_samples": self.num_images}
