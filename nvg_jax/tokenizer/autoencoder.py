"""The convolutional autoencoder: VQGAN (Esser et al., 2021) without attention (Appendix A)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nvg_jax.sharding import named, split_batch


def _norm(name: str) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=32, epsilon=1e-6, name=name)


def _conv3x3(features: int, name: str, axes: tuple[str | None, str | None]) -> nn.Conv:
    """axes: logical names of the input and output channels (see `sharding`)."""
    return nn.Conv(features, (3, 3), padding=1, kernel_init=_init(*axes), name=name)


def _init(*axes: str | None) -> Callable[..., Any]:
    return named(nn.initializers.lecun_normal(), None, None, *axes)


class ResidualBlock(nn.Module):
    """Pre-activation residual block; a 1x1 convolution on the skip where the channels change."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        h = _conv3x3(self.features, "conv1", ("embed", "hidden"))(nn.swish(_norm("norm1")(x)))
        h = _conv3x3(self.features, "conv2", ("hidden", "embed"))(nn.swish(_norm("norm2")(h)))
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), kernel_init=_init(None, "embed"), name="skip")(x)
        return split_batch(x + h)


class Encoder(nn.Module):
    """Images to latents: downsampling by `2^(len(multipliers) - 1)`."""

    width: int
    multipliers: Sequence[int]
    num_blocks: int
    latent_channels: int

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        x = _conv3x3(self.width, "conv_in", (None, "embed"))(images)
        for level, multiplier in enumerate(self.multipliers):
            for block in range(self.num_blocks):
                x = ResidualBlock(self.width * multiplier, name=f"down{level}_block{block}")(x)
            if level < len(self.multipliers) - 1:
                below_and_right = ((0, 1), (0, 1))
                x = nn.Conv(
                    x.shape[-1],
                    (3, 3),
                    strides=2,
                    padding=below_and_right,
                    kernel_init=_init(None, "embed"),
                    name=f"down{level}",
                )(x)
        for block in range(2):
            x = ResidualBlock(x.shape[-1], name=f"middle_block{block}")(x)
        return _conv3x3(self.latent_channels, "conv_out", ("embed", None))(
            nn.swish(_norm("norm_out")(x))
        )


class Decoder(nn.Module):
    """Latents to images, not clipped; one residual block a level more than the encoder."""

    width: int
    multipliers: Sequence[int]
    num_blocks: int

    @nn.compact
    def __call__(self, latent: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        x = _conv3x3(self.width * self.multipliers[-1], "conv_in", (None, "embed"))(latent)
        for block in range(2):
            x = ResidualBlock(x.shape[-1], name=f"middle_block{block}")(x)
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for block in range(self.num_blocks + 1):
                x = ResidualBlock(self.width * multiplier, name=f"up{level}_block{block}")(x)
            if level > 0:
                batch, height, width, channels = x.shape
                x = jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "nearest")
                x = _conv3x3(channels, f"up{level}", (None, "embed"))(x)
        return _conv3x3(3, "conv_out", ("embed", None))(nn.swish(_norm("norm_out")(x)))


def downsampling(multipliers: Sequence[int]) -> int:
    """How many pixels a latent position spans in each direction."""
    return 2 ** (len(multipliers) - 1)


def clip_to_image(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Bounds decoder output to the range of images, [-1, 1]."""
    return jnp.clip(x, -1.0, 1.0)
