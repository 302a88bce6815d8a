"""The content generator: from the canvas so far to the stage's tokens (paper, Sec. 3.3)."""

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
    embedding_init,
    rope_ids,
    with_class_token,
)


class ContentModel(nn.Module):
    """Predicts the final canvas from the canvas of a stage, and from that the stage's tokens.

    Class ids are `0..num_classes - 1`; `num_classes` itself stands for "no class". `tap`: as in
    `Stack`. The switches below are the ablations of Table 3, set to the full method.

    structure_rope: whether RoPE tells the blocks which cluster a position belongs to.
    final_canvas: whether the tokens follow from a predicted final canvas minus the canvas so far;
        else they follow from the head's output directly.
    noised_canvas: whether the canvas is blended with noise, all noise at stage 0 and none once it
        is finished, in place of the learned start canvas.
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
    tap: int = 0
    structure_rope: bool = True
    final_canvas: bool = True
    noised_canvas: bool = False

    def setup(self) -> None:
        num_positions = self.grid[0] * self.grid[1]
        self.num_stages = granularity.last_stage(num_positions) + 1
        self.start_canvas = self.param(
            "start_canvas", embedding_init, (num_positions, self.latent_channels)
        )
        self.canvas_embed = dense(self.width, self.dtype)
        self.class_embed = embed(self.num_classes + 1, self.width)
        self.stage_embed = embed(self.num_stages, self.width)
        self.stack = Stack(
            self.depth, self.num_heads, self.drop_path, self.remat, self.dtype, self.tap
        )
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
        noise: Float[Array, "B L C"] | None = None,
    ) -> Float[Array, "B L C"]:
        """The predicted final canvas.

        canvas: what stages before `stage` have painted. structure: only the top `stage` bits count.
        canvas_scales: 1 / std of the tokenizer's canvases. Random keys: `drop_path`, unless
        deterministic. noise: normal, of the image, for a model with `noised_canvas`.
        """
        scaled = canvas * canvas_scales[stage][:, None, None]
        if self.noised_canvas:
            share = (1.0 - stage / self.num_stages)[:, None, None]
            scaled = share * noise + (1.0 - share) * scaled
        else:
            scaled = jnp.where((stage == 0)[:, None, None], self.start_canvas, scaled)
        class_token = self.class_embed(class_id)
        vector = class_token + self.stage_embed(stage)
        x = jnp.concatenate(
            [class_token[:, None].astype(self.dtype), self.canvas_embed(scaled)], axis=1
        )
        known = stage if self.structure_rope else jnp.zeros_like(stage)
        ids = rope_ids(granularity.structure_embedding(structure, known), self.grid)
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
        missing = final_canvas - canvas if self.final_canvas else final_canvas
        return self.token_head(granularity.cluster_mean(missing, labels, num_clusters))
