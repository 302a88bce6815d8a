"""Whether an independent judge knows samples' classes."""

from typing import Any

from nvg_jax.evaluation.judge import class_agreement
from nvg_jax.evaluation.metric import Metric, Resources


class ClassAgreement(Metric):
    """Share of the samples whose class the judge, fitted to the training split, gives them."""

    needs = frozenset({"classes"})
    least_samples = 1

    def result(self, resources: Resources) -> dict[str, Any]:
        return {"class_agreement": class_agreement(resources.judge, *resources.samples)}
