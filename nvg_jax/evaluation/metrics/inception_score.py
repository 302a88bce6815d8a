"""The Inception Score: samples that are sure of their class, of all classes."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float
from scipy import special

from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.streams import Seen


class InceptionScore(Metric):
    """exp(mean KL(p(class | image) || p(class))) of Salimans et al., "Improved Techniques for
    Training GANs", 2016: mean and standard deviation over consecutive splits of the samples.

    As in the ADM evaluation suite, a split has 5,000 samples, and the last, which may have fewer,
    weighs as much as the others.
    """

    streams = ("samples",)
    needs = frozenset({"features"})
    least_samples = 1
    meaningful_from = 2000
    split_size = 5000

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._scores: list[float] = []
        self._waiting: list[np.ndarray] = []

    def look(self, seen: Seen) -> Float[Array, "B classes"]:
        return seen.features.logits

    def update(self, rows: Float[np.ndarray, "B classes"]) -> None:
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= self.split_size:
            self._score_splits(at_least=self.split_size)

    def result(self, resources: Resources) -> dict[str, Any]:
        mean, deviation = self.scores()
        return {"inception_score": mean, "inception_score_std": deviation}

    def scores(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits of all samples."""
        self._score_splits(at_least=1)
        return float(np.mean(self._scores)), float(np.std(self._scores))

    def _score_splits(self, at_least: int) -> None:
        """Scores what is waiting, split by split, as long as there are so many."""
        waiting = np.concatenate(self._waiting)
        while len(waiting) >= at_least:
            split = waiting[: self.split_size].astype(np.float64)
            probabilities = special.softmax(split, axis=1)
            divergence = special.rel_entr(probabilities, probabilities.mean(axis=0)).sum(axis=1)
            self._scores.append(np.exp(divergence.mean()))
            waiting = waiting[self.split_size :]
        self._waiting = [waiting]
