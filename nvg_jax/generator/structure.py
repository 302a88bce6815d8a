"""The structure generator: a rectified flow over the structure embedding (paper, Sec. 3.3)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nvg_jax import granularity
from nvg_jax.generator.transformer import (
    Head,
    Stack,
    dense,
    embed,
    rope_ids,
    time_features,
    with_class_token,
)

CANVAS_ROLE = 2


class StructureModel(nn.Module):
    """Predicts the velocity of the structure channels from the canvas after a stage.

    Class ids are `0..num_classes - 1`; `num_classes` itself stands for "no class".
    `structure_rope`: whether RoPE tells the blocks the known structure (ablation of Table 3).
    """

    depth: int
    width: int
    num_heads: int
    grid: tuple[int, int]
    num_classes: int
    drop_path: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32
    structure_rope: bool = True

    @nn.compact
    def __call__(
        self,
        noisy: Float[Array, "B L K"],
        canvas: Float[Array, "B L C"],
        structure: Int[Array, "B L"],
        stage: Int[Array, "B"],
        time: Float[Array, "B"],
        class_id: Int[Array, "B"],
        deterministic: bool = True,
    ) -> Float[Array, "B L K"]:
        """The velocity `eps - x` at flow time `time` in [0, 1] (1 is noise).

        noisy: the flow's state; its channels below `stage` hold the known structure, in {-1, 1}.
        canvas: painted by the stages up to and including `stage`; structure: only the top `stage`
        bits count. Random keys: `drop_path`, unless deterministic.
        """
        num_bits, length = noisy.shape[-1], noisy.shape[-2]
        class_token = embed(self.num_classes + 1, self.width, "class_embed")(class_id)
        vector = class_token + embed(num_bits - 1, self.width, "stage_embed")(stage)
        hidden = dense(self.width, jnp.float32, "time_embed_in", (None, "hidden"))(
            time_features(time)
        )
        vector += dense(self.width, jnp.float32, "time_embed_out", ("hidden", "embed"))(
            nn.silu(hidden)
        )
        x = jnp.concatenate(
            [
                class_token[:, None].astype(self.dtype),
                dense(self.width, self.dtype, "canvas_embed")(canvas),
                dense(self.width, self.dtype, "structure_embed")(noisy),
            ],
            axis=1,
        )
        known = stage if self.structure_rope else jnp.zeros_like(stage)
        bits = granularity.structure_embedding(structure, known)
        canvas_ids = rope_ids(bits, self.grid, CANVAS_ROLE)
        ids = jnp.concatenate([canvas_ids, rope_ids(bits, self.grid)], axis=1)
        x = Stack(self.depth, self.num_heads, self.drop_path, self.remat, self.dtype, name="stack")(
            x, vector, with_class_token(ids), deterministic
        )
        return Head(num_bits, self.dtype, name="head")(x[:, 1 + length :], vector)
