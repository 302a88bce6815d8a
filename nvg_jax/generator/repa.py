"""Representation alignment: the generator's tokens look like DINOv2's (Yu et al., 2025)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nvg_jax.generator.transformer import dense


class Projector(nn.Module):
    """From the generator's tokens to the frozen network's: three layers with silu between."""

    hidden: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... F"]:
        x = nn.silu(dense(self.hidden, self.dtype, "linear1", ("embed", "hidden"))(x))
        x = nn.silu(dense(self.hidden, self.dtype, "linear2", ("hidden", "embed"))(x))
        return dense(self.features, jnp.float32, "linear3", ("embed", None))(x)


def misalignment(
    projected: Float[Array, "B S L F"], features: Float[Array, "B L F"]
) -> Float[Array, "S"]:
    """1 - cosine similarity, mean over images and positions of each stage."""
    distance = optax.losses.cosine_distance(projected, features[:, None], epsilon=1e-8)
    return jnp.mean(distance, axis=(0, 2))
