"""The convolutional autoencoder: VQGAN (Esser et al., 2021) without attention (Appendix A)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from nvg_jax.precision import conv_precision
from nvg_jax.sharding import named, split_batch

# What the backward pass may keep of a residual block beside its input, by the name in a config.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names("convolved"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """How an autoencoder computes, which changes nothing of its parameters.

    precision: of convolutions of float32 arrays, as `precision.conv_precision` names it.
    dtype: of the activations; images, latents and the statistics of norms are float32 in any case.
    remat: what the backward pass recomputes of each residual block, a name in `REMAT`.
    """

    precision: str = "tensorfloat32"
    dtype: str = "float32"
    remat: str = "none"

    @property
    def exactness(self) -> str:
        """What results depend on, in few words."""
        return self.precision if self.dtype == "float32" else f"{self.dtype} activations"

    def norm(self, num_groups: int, name: str) -> nn.GroupNorm:
        return nn.GroupNorm(num_groups, epsilon=1e-6, dtype=self.dtype, name=name)

    def conv(
        self,
        features: int,
        kernel_size: int,
        name: str,
        axes: tuple[str | None, str | None],
        **options: Any,
    ) -> nn.Conv:
        """axes: logical names of the input and output channels (see `sharding`)."""
        return nn.Conv(
            features,
            (kernel_size, kernel_size),
            kernel_init=named(nn.initializers.lecun_normal(), None, None, *axes),
            dtype=self.dtype,
            precision=conv_precision(self.precision),
            name=name,
            **options,
        )

    def block(self, features: int, norm_groups: int, name: str) -> ResidualBlock:
        block = ResidualBlock
        if self.remat != "none":
            block = nn.remat(block, policy=REMAT[self.remat])
        return block(features, norm_groups, self, name=name)


class ResidualBlock(nn.Module):
    """Pre-activation residual block; a 1x1 convolution on the skip where the channels change."""

    features: int
    norm_groups: int
    arithmetic: Arithmetic

    @nn.compact
    def __call__(self, x: Float[Array, "B height width _"]) -> Float[Array, "B height width _"]:
        conv = functools.partial(self.arithmetic.conv, self.features)
        norm = functools.partial(self.arithmetic.norm, self.norm_groups)
        h = conv(3, "conv1", ("embed", "hidden"))(nn.swish(norm("norm1")(x)))
        h = checkpoint_name(h, "convolved")
        h = conv(3, "conv2", ("hidden", "embed"))(nn.swish(norm("norm2")(h)))
        if x.shape[-1] != self.features:
            x = conv(1, "skip", (None, "embed"))(x)
        return split_batch(x + h)


class Encoder(nn.Module):
    """Images to latents: downsampling by `2^(len(multipliers) - 1)`."""

    width: int
    multipliers: Sequence[int]
    num_blocks: int
    norm_groups: int
    latent_channels: int
    arithmetic: Arithmetic = Arithmetic()

    @nn.compact
    def __call__(self, images: Float[Array, "B height width 3"]) -> Float[Array, "B h w C"]:
        conv = functools.partial(self.arithmetic.conv, kernel_size=3)
        block = functools.partial(self.arithmetic.block, norm_groups=self.norm_groups)
        x = conv(self.width, name="conv_in", axes=(None, "embed"))(images)
        for level, multiplier in enumerate(self.multipliers):
            for number in range(self.num_blocks):
                x = block(self.width * multiplier, name=f"down{level}_block{number}")(x)
            if level < len(self.multipliers) - 1:
                below_and_right = ((0, 1), (0, 1))
                x = conv(
                    x.shape[-1],
                    name=f"down{level}",
                    axes=(None, "embed"),
                    strides=2,
                    padding=below_and_right,
                )(x)
        for number in range(2):
            x = block(x.shape[-1], name=f"middle_block{number}")(x)
        x = nn.swish(self.arithmetic.norm(self.norm_groups, "norm_out")(x))
        x = conv(self.latent_channels, name="conv_out", axes=("embed", None))(x)
        return x.astype(jnp.float32)


class Decoder(nn.Module):
    """Latents to images, not clipped; one residual block a level more than the encoder."""

    width: int
    multipliers: Sequence[int]
    num_blocks: int
    norm_groups: int
    arithmetic: Arithmetic = Arithmetic()

    @nn.compact
    def __call__(self, latent: Float[Array, "B h w C"]) -> Float[Array, "B height width 3"]:
        conv = functools.partial(self.arithmetic.conv, kernel_size=3)
        block = functools.partial(self.arithmetic.block, norm_groups=self.norm_groups)
        x = conv(self.width * self.multipliers[-1], name="conv_in", axes=(None, "embed"))(latent)
        for number in range(2):
            x = block(x.shape[-1], name=f"middle_block{number}")(x)
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for number in range(self.num_blocks + 1):
                x = block(self.width * multiplier, name=f"up{level}_block{number}")(x)
            if level > 0:
                batch, height, width, channels = x.shape
                x = jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "nearest")
                x = conv(channels, name=f"up{level}", axes=(None, "embed"))(x)
        x = nn.swish(self.arithmetic.norm(self.norm_groups, "norm_out")(x))
        return conv(3, name="conv_out", axes=("embed", None))(x).astype(jnp.float32)


def downsampling(multipliers: Sequence[int]) -> int:
    """How many pixels a latent position spans in each direction."""
    return 2 ** (len(multipliers) - 1)


def clip_to_image(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Bounds decoder output to the range of images, [-1, 1]."""
    return jnp.clip(x, -1.0, 1.0)
