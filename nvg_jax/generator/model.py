"""The generator: content and structure model side by side, as they are trained and sampled."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nvg_jax import granularity
from nvg_jax.generator.content import ContentModel
from nvg_jax.generator.structure import StructureModel


class Generator(nn.Module):
    """Both models with the same number of blocks, over the positions and codes of one tokenizer.

    The paper's model of depth d has content width 64 d with d heads, and structure width 32 d with
    d / 2 heads. `num_classes` is also the class id of "no class". The switches `structure_rope`,
    `final_canvas`, `noised_canvas` (see `ContentModel`) and `known_structure` are the ablations of
    Table 3, set to the full method.

    tap: blocks of the content model after which its tokens are sown (see `Stack`); 0: none.
    known_structure: whether the flow's state holds the known structure in the channels of earlier
        stages; else they are noise like the others, and only RoPE knows the structure.
    """

    depth: int
    content_width: int
    content_heads: int
    structure_width: int
    structure_heads: int
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
    known_structure: bool = True

    @property
    def num_positions(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def last_stage(self) -> int:
        return granularity.last_stage(self.num_positions)

    def example(self) -> Int[Array, "B"]:
        """Input for `init`."""
        return jnp.zeros((1,), jnp.int32)

    @property
    def architecture(self) -> str:
        """What a checkpoint has to agree with, in one line."""
        ablations = {
            "no structure RoPE": not self.structure_rope,
            "direct content": not self.final_canvas,
            "noised canvas": self.noised_canvas,
            "pure-noise structure": not self.known_structure,
        }
        ablated = "".join(f", {name}" for name, chosen in ablations.items() if chosen)
        return (
            f"generator(depth {self.depth}, content {self.content_width} x {self.content_heads} "
            f"heads, structure {self.structure_width} x {self.structure_heads} heads, "
            f"{self.num_positions} positions x {self.latent_channels}, codebook {self.vocab_size}, "
            f"{self.num_classes} classes{ablated})"
        )

    def setup(self) -> None:
        shared = {
            "depth": self.depth,
            "grid": self.grid,
            "num_classes": self.num_classes,
            "drop_path": self.drop_path,
            "remat": self.remat,
            "dtype": self.dtype,
            "structure_rope": self.structure_rope,
        }
        self.content = ContentModel(
            width=self.content_width,
            num_heads=self.content_heads,
            latent_channels=self.latent_channels,
            vocab_size=self.vocab_size,
            tap=self.tap,
            final_canvas=self.final_canvas,
            noised_canvas=self.noised_canvas,
            **shared,
        )
        self.structure = StructureModel(
            width=self.structure_width, num_heads=self.structure_heads, **shared
        )

    def __call__(self, class_id: Int[Array, "B"]) -> None:
        """Runs every part once on zeros, which is all that initialisation needs."""
        batch, length = class_id.shape[0], self.num_positions
        canvas = jnp.zeros((batch, length, self.latent_channels))
        structure = jnp.zeros((batch, length), jnp.int32)
        stage = jnp.zeros((batch,), jnp.int32)
        scales = jnp.ones((self.last_stage + 2,))
        final_canvas = self.predict_canvas(canvas, structure, stage, class_id, scales, noise=canvas)
        self.token_logits(final_canvas, canvas, structure, 1)
        noisy = jnp.zeros((batch, length, self.last_stage))
        self.velocity(noisy, canvas, structure, stage, jnp.zeros((batch,)), class_id)

    def predict_canvas(self, *args: Any, **options: Any) -> Float[Array, "B L C"]:
        """As `ContentModel.__call__`."""
        return self.content(*args, **options)

    def token_logits(self, *args: Any) -> Float[Array, "B N V"]:
        """As `ContentModel.logits`."""
        return self.content.logits(*args)

    def velocity(self, *args: Any, **options: Any) -> Float[Array, "B L K"]:
        """As `StructureModel.__call__`."""
        return self.structure(*args, **options)
