"""Whether the features' classifier knows the samples' classes."""

from typing import Any

import numpy as np
from jaxtyping import Array, Bool

from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.streams import Seen


class ClassifierAgreement(Metric):
    """classifier_agreement: share of the samples that the network assigns to the requested class;
    classifier_accuracy: share of the split's images that it assigns to theirs."""

    streams = ("split", "samples")
    needs = frozenset({"features", "classes"})
    least_samples = 1

    def look(self, seen: Seen) -> dict[str, Bool[Array, "B"]]:
        return {seen.stream: seen.features.logits.argmax(axis=1) == seen.labels}

    def result(self, resources: Resources) -> dict[str, Any]:
        names = {"samples": "classifier_agreement", "split": "classifier_accuracy"}
        return {
            name: float(np.concatenate([x[stream] for x in self.parts if stream in x]).mean())
            for stream, name in names.items()
            if any(stream in x for x in self.parts)
        }
