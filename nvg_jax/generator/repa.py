"""Representation alignment: the generator's tokens look like DINOv2's (Yu et al., 2025)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nvg_jax import granularity
from nvg_jax.frozen import vit
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


class Alignment:
    """What the tokens that a content model taps lose for looking unlike DINOv2's."""

    def __init__(self, dinov2: vit.VisionTransformer, hidden: int, dtype: str):
        self._dinov2 = dinov2.clone(dtype=dtype)
        self._projector = Projector(hidden, dinov2.width, dtype)

    def init_params(self, key: jax.Array, width: int) -> Any:
        """Of the projector, from tokens of this width."""
        return self._projector.init(key, jnp.zeros((1, width)))["params"]

    def loss(
        self,
        params: Any,
        dinov2_variables: Any,
        images: Float[Array, "B height width 3"],
        grid: tuple[int, int],
        stage_stride: int,
        tokens: Float[Array, "G stages L D"],
    ) -> Float[Array, "stages"]:
        """`misalignment` of the projected tokens of every stage, on a grid of L positions.

        stage_stride: as in `granularity.shared_out`; there are G = B / stage_stride groups.
        """
        features = vit.dinov2_features(self._dinov2, dinov2_variables, images, grid)
        features = granularity.shared_out([features] * tokens.shape[1], stage_stride)
        projected = self._projector.apply({"params": params}, tokens)
        return misalignment(projected, jax.lax.stop_gradient(features))


def misalignment(
    projected: Float[Array, "B stages L F"], features: Float[Array, "B stages L F"]
) -> Float[Array, "stages"]:
    """1 - cosine similarity, mean over images and positions of each stage."""
    distance = optax.losses.cosine_distance(projected, features, epsilon=1e-8)
    return jnp.mean(distance, axis=(0, 2))
