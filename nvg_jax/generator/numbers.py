"""Embeddings of numbers, as the flow's time or a guidance, by two layers on sinusoids."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from nvg_jax.generator.transformer import dense, xavier

SMOOTH = 10.0  # The fastest frequency of `number_features` where they are to be differentiated.


def number_layers(
    width: int, name: str | None = None, last_init: Any = xavier
) -> tuple[nn.Dense, nn.Dense]:
    """The layers of `embed_number`, `<name>_in` and `<name>_out`; without a name in `setup`."""
    names = (f"{name}_in", f"{name}_out") if name else (None, None)
    first = dense(width, jnp.float32, names[0], (None, "hidden"))
    return first, dense(width, jnp.float32, names[1], ("hidden", "embed"), last_init)


def embed_number(
    number: Float[Array, "B"], first: nn.Dense, last: nn.Dense, fastest: float
) -> Float[Array, "B D"]:
    """Embeds a number in [0, 1] by two layers on its `number_features`."""
    return last(nn.silu(first(number_features(number, fastest))))


def number_features(
    number: Float[Array, "B"], fastest: float, num_features: int = 64
) -> Float[Array, "B F"]:
    """Cosines, then sines of a number, at frequencies from the fastest to its 10,000th part."""
    half = num_features // 2
    frequency = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / half)
    angle = fastest * number[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
