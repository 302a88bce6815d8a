"""The content generator: from the canvas so far to the stage's tokens (paper, Sec. 3.3)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nvg_jax import granularity
from nvg_jax.models.transformer import (
    Head,
    Stack,
    dense,
    embed,
    embedding_init,
    rope_ids,
    with_class_token,
)


class ContentModel(nn.Module):
    """Predicts the final canvas from the canvas of a stage, and from that the stage's tokens.

    Class ids are `0..num_classes - 1`; `num_classes` itself stands for "no class".
    """

    depth: int
    width: int
    num_heads: int
    grid: tuple[int, int]
    latent_channels: int
    vocab_size: int
    num_classes: int
    drop_path: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self) -> None:
        num_positions = self.grid[0] * self.grid[1]
        num_stages = granularity.last_stage(num_positions) + 1
        self.start_canvas = self.param(
            "start_canvas", embedding_init, (num_positions, self.latent_channels)
        )
        self.canvas_embed = dense(self.width, self.dtype)
        self.class_embed = embed(self.num_classes + 1, self.width)
        self.stage_embed = embed(num_stages, self.width)
        self.stack = Stack(self.depth, self.num_heads, self.drop_path, self.remat, self.dtype)
        self.final_head = Head(self.latent_channels, self.dtype)
        self.token_head = dense(self.vocab_size, jnp.float32)

    def __call__(
        self,
        canvas: Float[Array, "B L C"],
        structure: Int[Array, "B L"],
        stage: Int[Array, "B"],
        class_id: Int[Array, "B"],
        canvas_scales: Float[Array, "S"],
        deterministic: bool = True,
    ) -> Float[Array, "B L C"]:
        """The predicted final canvas.

        canvas: what stages before `stage` have painted. structure: only the top `stage` bits count.
        canvas_scales: 1 / std of the tokenizer's canvases. Random keys: `drop_path`, unless
        deterministic.
        """
        scaled = canvas * canvas_scales[stage][:, None, None]
        scaled = jnp.where((stage == 0)[:, None, None], self.start_canvas, scaled)
        class_token = self.class_embed(class_id)
        vector = class_token + self.stage_embed(stage)
        x = jnp.concatenate(
            [class_token[:, None].astype(self.dtype), self.canvas_embed(scaled)], axis=1
        )
        ids = rope_ids(granularity.structure_embedding(structure, stage), self.grid)
        x = self.stack(x, vector, with_class_token(ids), deterministic)
        return self.final_head(x[:, 1:], vector) / canvas_scales[-1]

    def logits(
        self,
        final_canvas: Float[Array, "B L C"],
        canvas: Float[Array, "B L C"],
        labels: Int[Array, "B L"],
        num_clusters: int,
    ) -> Float[Array, "B N V"]:
        """Token logits of each cluster, from what is still missing on the canvas there."""
        missing = granularity.cluster_mean(final_canvas - canvas, labels, num_clusters)
        return self.token_head(missing)
