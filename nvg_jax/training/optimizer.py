"""Optimizer and learning-rate schedules of both trainings (paper, Appendix A)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict


def learning_rate(config: ConfigDict, num_steps: int) -> optax.Schedule:
    """Warm-up, plateau and decay, from a training config.

    Rises linearly from the fraction `warmup_from` of `learning_rate` in `warmup_steps`, stays there
    until the fraction `decay_start` of training, and then falls to the fraction `decay_to`:
    in a line (`schedule` "linear") or along half a cosine ("cosine").
    """
    peak = config.learning_rate
    decay_at = max(round(config.decay_start * num_steps), config.warmup_steps)
    decay_steps = max(num_steps - decay_at, 1)
    if config.schedule == "linear":
        decay = optax.linear_schedule(peak, config.decay_to * peak, decay_steps)
    else:
        decay = optax.cosine_decay_schedule(peak, decay_steps, config.decay_to)
    warmup = optax.linear_schedule(config.warmup_from * peak, peak, max(config.warmup_steps, 1))
    return optax.join_schedules(
        [warmup, optax.constant_schedule(peak), decay], [config.warmup_steps, decay_at]
    )


def decays(params: Any) -> Any:
    """Which tensors weight decay acts on: those of rank 2 and more, so neither biases nor norms.

    Goes by name, as tensors stacked over blocks or stages have one axis more than their rank.
    """

    def decay(path: tuple[Any, ...], _: Any) -> bool:
        return not path[-1].key.endswith(("bias", "scale"))

    return jax.tree_util.tree_map_with_path(
        decay, params, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
    )


def create(
    config: ConfigDict, num_steps: int, weight_decay: float | None = None
) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW(0.9, 0.95), from a training config.

    weight_decay: in place of the config's.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, num_steps),
            b1=0.9,
            b2=0.95,
            weight_decay=config.weight_decay if weight_decay is None else weight_decay,
            mask=decays,
        ),
    )
