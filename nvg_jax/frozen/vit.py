"""Vision transformers that learned from images alone: DINO ViT-S/16 and DINOv2 ViT-B/14."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from nvg_jax.frozen import resize

# Of ImageNet's pixels in [0, 1].
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

_READOUT_BLOCKS = (2, 5, 8, 11)

_he_normal = nn.initializers.he_normal()
_embedding_init = nn.initializers.normal(0.02)


def normalise(images: Float[Array, "B height width 3"]) -> Float[Array, "B height width 3"]:
    """Images in [-1, 1] to zero mean and unit variance over ImageNet."""
    return ((images + 1) / 2 - jnp.array(_MEAN)) / jnp.array(_STD)


class Block(nn.Module):
    """Pre-norm attention and MLP. The tokens stay float32, the products are made in `dtype`."""

    num_heads: int
    layer_scale: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B tokens D"], _: None
    ) -> tuple[Float[Array, "B tokens D"], Float[Array, "B tokens D"]]:
        width = x.shape[-1]
        qkv = self._dense(3 * width, "attn_qkv")(_norm("norm1")(x))
        q, k, v = rearrange(qkv, "b t (three h e) -> three b t h e", three=3, h=self.num_heads)
        attended = rearrange(jax.nn.dot_product_attention(q, k, v), "b t h e -> b t (h e)")
        x += self._scaled(self._dense(width, "attn_proj")(attended), "ls1")
        hidden = self._dense(4 * width, "mlp_fc1")(_norm("norm2")(x))
        hidden = nn.gelu(hidden, approximate=False)
        x += self._scaled(self._dense(width, "mlp_fc2")(hidden), "ls2")
        return x, x

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, kernel_init=_he_normal, name=name)

    def _scaled(self, update: Float[Array, "B tokens D"], name: str) -> Float[Array, "B tokens D"]:
        if not self.layer_scale:
            return update
        return update * self.param(f"{name}_gamma", nn.initializers.ones, update.shape[-1:])


def _norm(name: str | None = None) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=name)


class VisionTransformer(nn.Module):
    """Looks at images in [-1, 1] whose sides are multiples of `patch_size`.

    native_grid: side of the square of patches for which there are position embeddings; for other
      images these are interpolated.
    layer_scale: whether each residual branch ends with a learnt scale for every channel.
    dtype: of the products, which have the accelerator's default precision: only trainings look
      through these networks. Parameters, norms, softmax and results are float32.
    """

    patch_size: int
    width: int
    num_heads: int
    native_grid: int
    layer_scale: bool
    depth: int = 12
    dtype: Any = jnp.float32

    @property
    def num_readouts(self) -> int:
        return 1 + len(_READOUT_BLOCKS)

    def setup(self) -> None:
        patch = (self.patch_size, self.patch_size)
        self.patch_embed = nn.Conv(
            self.width,
            patch,
            strides=patch,
            padding="VALID",
            kernel_init=_he_normal,
            dtype=self.dtype,
        )
        positions = 1 + self.native_grid**2
        self.cls_token = self.param("cls_token", _embedding_init, (1, 1, self.width))
        self.pos_embed = self.param("pos_embed", _embedding_init, (1, positions, self.width))
        self.blocks = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth
        )(self.num_heads, self.layer_scale, self.dtype)
        self.norm = _norm()

    def __call__(self, images: Float[Array, "B height width 3"]) -> Float[Array, "B patches D"]:
        """The patch tokens after the last block and the final norm, row by row."""
        x, _ = self.blocks(self._embed(images), None)
        return self.norm(x)[:, 1:]

    def readouts(
        self, images: Float[Array, "B height width 3"]
    ) -> Float[Array, "B readouts patches D"]:
        """The patch tokens plus the class token, before block 0 and after blocks 2, 5, 8, 11."""
        x = self._embed(images)
        _, after = self.blocks(x, None)
        tokens = jnp.stack([x, *(after[block] for block in _READOUT_BLOCKS)], axis=1)
        return tokens[:, :, 1:] + tokens[:, :, :1]

    def _embed(self, images: Float[Array, "B height width 3"]) -> Float[Array, "B tokens D"]:
        """The class token and the patches in the order of rows, with their positions added."""
        patches = self.patch_embed(normalise(images)).astype(jnp.float32)
        positions = self.position_embedding(patches.shape[1:3])
        class_token = jnp.broadcast_to(self.cls_token, (len(patches), 1, self.width))
        patches = rearrange(patches, "b y x d -> b (y x) d")
        return jnp.concatenate([class_token, patches], axis=1) + positions

    def position_embedding(self, grid: tuple[int, int]) -> Float[Array, "1 tokens D"]:
        """Of the class token and the patches of a grid: antialiased bicubic (a = -0.5)."""
        side = self.native_grid
        if grid == (side, side):
            return self.pos_embed
        native = self.pos_embed[:, 1:].reshape(1, side, side, self.width)
        resized = jax.image.resize(native, (1, *grid, self.width), "cubic")
        resized = rearrange(resized, "b y x d -> b (y x) d")
        return jnp.concatenate([self.pos_embed[:, :1], resized], axis=1)


def dino_vits16(dtype: Any = jnp.float32) -> VisionTransformer:
    """DINO ViT-S/16 (Caron et al., 2021), the eyes of the discriminator."""
    return VisionTransformer(
        patch_size=16, width=384, num_heads=6, native_grid=14, layer_scale=False, dtype=dtype
    )


def dinov2_vitb14(dtype: Any = jnp.float32) -> VisionTransformer:
    """DINOv2 ViT-B/14 (Oquab et al., 2023), whose tokens REPA aligns the generator to."""
    return VisionTransformer(
        patch_size=14, width=768, num_heads=12, native_grid=37, layer_scale=True, dtype=dtype
    )


def dinov2_features(
    module: VisionTransformer,
    variables: Any,
    images: Float[Array, "B height width 3"],
    grid: tuple[int, int],
) -> Float[Array, "B L D"]:
    """One feature for each position of a grid: the patch tokens of the images resized to fit it.

    images: in [-1, 1], of any size.
    grid: rows and columns; 16 x 16 of DINOv2 ViT-B/14 is an image of 224 x 224.
    """
    size = (grid[0] * module.patch_size, grid[1] * module.patch_size)
    # The references normalise first. Resizing keeps constants, so the order does not matter.
    return module.apply(variables, resize.bicubic(images, size))
