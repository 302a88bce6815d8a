"""How much of the codebook the tokenizer uses."""

from typing import Any

import numpy as np
from jaxtyping import Array, Int

from nvg_jax import granularity
from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.streams import Seen


class CodebookUsage(Metric):
    """Share of the codes that the split uses, in all stages and by stage."""

    streams = ("split",)

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._used: list[set[int]] = []

    def look(self, seen: Seen) -> Int[Array, "B heap"]:
        return seen.sequence.tokens

    def update(self, rows: Int[np.ndarray, "B heap"]) -> None:
        stages = granularity.last_stage((rows.shape[1] + 1) // 2) + 1
        self._used = self._used or [set() for _ in range(stages)]
        for stage, used in enumerate(self._used):
            used.update(np.unique(rows[:, granularity.stage_slice(stage)]).tolist())

    def result(self, resources: Resources) -> dict[str, Any]:
        size = resources.config.tokenizer.model.vocab_size
        return {
            "codebook_usage": len(set().union(*self._used)) / size,
            "codebook_usage_by_stage": [len(used) / size for used in self._used],
        }
