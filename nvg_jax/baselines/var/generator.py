"""The generator of VAR: one transformer over the tokens of all scales (VAR, Sec. 3.3)."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from nvg_jax.baselines.one_stack import OneStackGenerator, OneStackSizes
from nvg_jax.baselines.var.tokenizer import build_pyramid_tokenizer, shrink
from nvg_jax.generator.model import stack_sizes
from nvg_jax.generator.sizes import StackSizes
from nvg_jax.generator.transformer import (
    Block,
    Head,
    Stack,
    dense,
    embed,
    embedding_init,
    head_by_head,
)

Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ScaleStackSizes(StackSizes):
    """A stack over the tokens of grids with these sides."""

    scales: tuple[int, ...] = ()

    @property
    def scale_of(self) -> Int[np.ndarray, "T"]:
        """The scale of each token."""
        return np.repeat(np.arange(len(self.scales)), np.square(self.scales))


@dataclasses.dataclass(frozen=True)
class VarSizes(OneStackSizes):
    """A generator over the scales and codes of one tokenizer."""

    stack: ScaleStackSizes
    vocab_size: int

    @property
    def last_stage(self) -> int:
        return len(self.stack.scales) - 1

    @property
    def architecture(self) -> str:
        """What a checkpoint has to agree with, in one line."""
        stack = self.stack
        return (
            f"VAR's generator(depth {stack.depth}, {stack.width} x {stack.num_heads} heads, scales "
            f"{','.join(map(str, stack.scales))} x {self.latent_channels}, codebook "
            f"{self.vocab_size}, {self.num_classes} classes)"
        )


class CausalBlock(Block):
    """Tokens look at those of their own scale and of the scales before.

    Where the collection `cache` may be changed, keys and values are kept there, and the tokens
    follow those whose keys and values it holds.
    """

    sizes: ScaleStackSizes

    def attend(
        self, q: Float[Array, "B T H E"], k: Float[Array, "B T H E"], v: Float[Array, "B T H E"]
    ) -> Float[Array, "B T H E"]:
        if self.is_mutable_collection("cache"):
            k, v = self._after_cached("keys", k), self._after_cached("values", v)
        mask = causal_mask(self.sizes.scale_of[: k.shape[1]])
        return head_by_head(q, k, v, mask[-q.shape[1] :])

    def _after_cached(self, name: str, new: Float[Array, "B T H E"]) -> Float[Array, "B S H E"]:
        cached = self.variable("cache", name, lambda: new[:, :0])
        cached.value = jnp.concatenate([cached.value, new], axis=1)
        return cached.value


def causal_mask(scale_of: Int[np.ndarray, "T"]) -> Bool[np.ndarray, "T T"]:
    """Which tokens (columns) each token (row) looks at, from the scale of each."""
    return scale_of[:, None] >= scale_of[None, :]


class ScaleTransformer(nn.Module):
    """Predicts the tokens of each scale from the class and the canvas before it.

    The first token is the class; those of a later scale are the canvas, shrunk to its grid. To each
    are added what is learned of its scale and of its place there.
    """

    sizes: VarSizes

    def setup(self) -> None:
        sizes, stack = self.sizes, self.sizes.stack
        self.canvas_embed = dense(stack.width, stack.dtype)
        self.class_embed = embed(sizes.num_classes + 1, stack.width)
        self.scale_embed = embed(len(stack.scales), stack.width)
        self.place_embed = self.param(
            "place_embed", embedding_init, (len(stack.scale_of), stack.width)
        )
        self.stack = Stack(stack, block=CausalBlock)
        self.head = Head(sizes.vocab_size, stack.dtype)

    def __call__(
        self,
        canvases: Float[Array, "B _ C"],
        class_id: Int[Array, "B"],
        start: int = 0,
        deterministic: bool = True,
    ) -> Float[Array, "B T V"]:
        """The logits of T tokens from the one at `start` on.

        canvases: as `inputs` makes them, of these tokens without the first of all. Random keys:
        `drop_path`, unless deterministic. The collection `cache`: see `CausalBlock`.
        """
        stack, vector = self.sizes.stack, self.class_embed(class_id)
        x = self.canvas_embed(canvases)
        if start == 0:
            x = jnp.concatenate([vector[:, None].astype(stack.dtype), x], axis=1)
        tokens = slice(start, start + x.shape[1])
        learned = self.scale_embed(stack.scale_of[tokens]) + self.place_embed[tokens]
        ids = jnp.broadcast_to(rope_ids(stack.scales, self.sizes.grid)[tokens], (*x.shape[:2], 3))
        x = self.stack(x + learned.astype(stack.dtype), vector, ids, deterministic)
        return self.head(x, vector)


def rope_ids(scales: tuple[int, ...], grid: tuple[int, int]) -> Float[np.ndarray, "T 3"]:
    """Each token's scale, and row and column of its centre among the latent's positions."""
    ids = []
    for scale, side in enumerate(scales):
        row, column = np.divmod(np.arange(side * side), side)
        row, column = (
            (x + 0.5) * length / side - 0.5 for x, length in zip((row, column), grid, strict=True)
        )
        ids.append(np.stack([np.full(side * side, scale), row, column], axis=1))
    return np.concatenate(ids).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class VarGenerator(OneStackGenerator):
    """The network over one tokenizer's scales and codes."""

    sizes: VarSizes

    @property
    def network(self) -> ScaleTransformer:
        return ScaleTransformer(self.sizes)

    @property
    def architecture(self) -> str:
        """What a checkpoint has to agree with, in one line."""
        return self.sizes.architecture

    def init_variables(self, key: Key[Array, ""]) -> Variables:
        """Random parameters to train from."""
        canvases = jnp.zeros((1, len(self.sizes.stack.scale_of) - 1, self.sizes.latent_channels))
        made = self.network.init(key, canvases, jnp.zeros((1,), jnp.int32))
        return {"params": {"transformer": made["params"]}}

    def inputs(
        self,
        canvases: Float[Array, "B canvases L C"],
        canvas_scales: Float[Array, "canvases"],
    ) -> Float[Array, "B _ C"]:
        """What the network takes of the canvases before each scale but the first."""
        parts = [
            self.input(canvases[:, stage], canvas_scales, stage)
            for stage in range(1, self.sizes.last_stage + 1)
        ]
        return jnp.concatenate(parts, axis=1)

    def input(
        self, canvas: Float[Array, "B L C"], canvas_scales: Float[Array, "canvases"], stage: int
    ) -> Float[Array, "B N C"]:
        """What it takes of the canvas before one scale: of unit variance, on the scale's grid."""
        scaled = canvas * canvas_scales[stage]
        return shrink(scaled, self.sizes.grid, self.sizes.stack.scales[stage])


def build_var_generator(config: ConfigDict) -> VarGenerator:
    """The generator of a whole run's config, as wide and deep as its content model.

    UserError if a value is not allowed, or its sizes do not fit together.
    """
    tokenizer, sizes = build_pyramid_tokenizer(config), stack_sizes(config, "content", 0)
    return VarGenerator(
        VarSizes(
            ScaleStackSizes(**dataclasses.asdict(sizes), scales=tokenizer.scales),
            grid=tokenizer.grid,
            latent_channels=tokenizer.latent_channels,
            vocab_size=tokenizer.vocab_size,
            num_classes=config.data.num_classes,
        )
    )
