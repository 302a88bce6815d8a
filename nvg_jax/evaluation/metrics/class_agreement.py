"""Whether an independent judge knows samples' classes."""

from typing import Any

import numpy as np
from jaxtyping import Array, Int, UInt8

from nvg_jax import pixels
from nvg_jax.evaluation.judge import class_agreement
from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.streams import Seen


class ClassAgreement(Metric):
    """class_agreement: share of the samples whose class the judge, fitted to the training split,
    gives them; class_accuracy: the same of the split's images."""

    streams = ("split",)
    needs = frozenset({"classes"})
    least_samples = 1

    def look(self, seen: Seen) -> tuple[UInt8[Array, "B height width 3"], Int[Array, "B"]]:
        return pixels.to_uint8(seen.images), seen.labels

    def result(self, resources: Resources) -> dict[str, Any]:
        judge, found = resources.judge, {}
        if self.parts:
            images, labels = (np.concatenate(x) for x in zip(*self.parts, strict=True))
            found["class_accuracy"] = class_agreement(judge, images, labels)
        return {"class_agreement": class_agreement(judge, *resources.samples)} | found
