"""How to sample: what may be chosen without training anything anew (paper, Sec. 3.3, 4.1)."""

from __future__ import annotations

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from nvg_jax import allowed


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample. Pairs are the values at the first and the last stage.

    content_guidance, structure_guidance: classifier-free guidance, linear over stages; 1 is none.
    temperature: of the tokens; 0 takes the most likely one.
    top_k: how many of the likeliest tokens to draw from; 0 is all.
    top_p: probability mass to draw from, falling as the geometric spacing of the stages grows.
    flow_steps: steps of each run of the structure generator.
    structure_stages: stages at which it runs; empty is all, as in the paper. A stage between takes
        its split from what the last run has foreseen for it, as do stages that are not painted.
    gumbel_split: whether the halves of a split are drawn, instead of taking the top half.
    """

    content_guidance: tuple[float, float] = (1.0, 3.5)
    structure_guidance: tuple[float, float] = (1.0, 2.5)
    temperature: float = 1.0
    top_k: int = 0
    top_p: tuple[float, float] = (1.0, 0.5)
    flow_steps: int = 25
    structure_stages: tuple[int, ...] = ()
    gumbel_split: bool = False

    def __post_init__(self) -> None:
        """UserError, a ValueError, if a value is not one that `config.sampling` may have."""
        allowed.check(dataclasses.asdict(self), "sampling")

    @classmethod
    def from_config(cls, config: ConfigDict) -> Settings:
        """The part of a `config.sampling` that the loop needs."""
        values = {field.name: config[field.name] for field in dataclasses.fields(cls)}
        # A config that was read from JSON has lists.
        return cls(**{name: tuple(x) if isinstance(x, list) else x for name, x in values.items()})

    def guidance(self, name: str, stage: int, last_stage: int) -> np.float32 | None:
        """Of 'content' or 'structure', as `ramp`; None for 1, which needs no second pass."""
        guidance = ramp(getattr(self, f"{name}_guidance"), stage, last_stage)
        return None if guidance == 1 else np.float32(guidance)

    def bounds(self, stage: int, last_stage: int) -> tuple[np.float32 | None, np.float32 | None]:
        """The temperature, None for 0, and top-p, None where all is drawn from."""
        temperature = np.float32(self.temperature) if self.temperature else None
        if self.top_p == (1.0, 1.0):
            return temperature, None
        return temperature, np.float32(top_p_at(self.top_p, stage, last_stage))


def ramp(pair: tuple[float, float], stage: int, last_stage: int) -> float:
    """A guidance at a stage: linear from the first to the last.

    That of the structure ends there too, though the last structure generated follows stage K - 2.
    """
    return float(np.linspace(*pair, last_stage + 1)[stage])


def top_p_at(top_p: tuple[float, float], stage: int, last_stage: int) -> float:
    """Top-p at a stage: from one value to the other as `a` goes geometrically from 1 to K."""
    a = np.geomspace(1.0, last_stage, last_stage + 1)[stage]
    return float(top_p[0] + (top_p[1] - top_p[0]) * (a - 1.0) / max(last_stage - 1, 1))
