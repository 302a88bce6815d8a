"""How much of the codebook the tokenizer uses."""

from typing import Any

import numpy as np
from jaxtyping import Array, Int

from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.streams import Seen


class CodebookUsage(Metric):
    """Share of the codes that the split uses, in all stages and by stage."""

    streams = ("split",)

    def look(self, seen: Seen) -> list[Int[Array, "B _"]]:
        return seen.tokens

    def update(self, rows: list[Int[np.ndarray, "B _"]]) -> None:
        self.parts = self.parts or [set() for _ in rows]  # The codes of each stage.
        for used, tokens in zip(self.parts, rows, strict=True):
            used.update(np.unique(tokens))

    def result(self, resources: Resources) -> dict[str, Any]:
        overall, by_stage = self.shares()
        return {"codebook_usage": overall, "codebook_usage_by_stage": by_stage}

    def shares(self) -> tuple[float, list[float]]:
        """By all stages together, and by each."""
        size = self.config.tokenizer.model.vocab_size
        return len(set().union(*self.parts)) / size, [len(used) / size for used in self.parts]
