"""InceptionV3 as of 2015-12-05, through which FID, sFID and the Inception Score look at images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nvg_jax.frozen import resize

_NATIVE_SIZE = 299
_NUM_CLASSES = 1008
_SPATIAL_CHANNELS = 7
_EXACT = jax.lax.Precision.HIGHEST

_he_normal = nn.initializers.he_normal()

# What each branch of a block does, one after the other: a number of channels, and the rows and
# columns of a kernel. Two kernels look at the same, and what they see is concatenated.
Branches = Mapping[str, tuple[tuple[Any, ...], ...]]

_FORK = (384, (1, 3), (3, 1))


def _fine(pool_channels: int) -> Branches:
    return {
        "branch1x1": ((64, (1, 1)),),
        "branch5x5": ((48, (1, 1)), (64, (5, 5))),
        "branch3x3dbl": ((64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
        "branch_pool": ((pool_channels, (1, 1)),),
    }


def _middle(channels: int) -> Branches:
    across, along, point = (channels, (1, 7)), (channels, (7, 1)), (channels, (1, 1))
    return {
        "branch1x1": ((192, (1, 1)),),
        "branch7x7": (point, across, (192, (7, 1))),
        "branch7x7dbl": (point, along, across, along, (192, (1, 7))),
        "branch_pool": ((192, (1, 1)),),
    }


_COARSE: Branches = {
    "branch1x1": ((320, (1, 1)),),
    "branch3x3": ((384, (1, 1)), _FORK),
    "branch3x3dbl": ((448, (1, 1)), (384, (3, 3)), _FORK),
    "branch_pool": ((192, (1, 1)),),
}
_FINE_TO_MIDDLE: Branches = {
    "branch3x3": ((384, (3, 3)),),
    "branch3x3dbl": ((64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
    "branch_pool": (),
}
_MIDDLE_TO_COARSE: Branches = {
    "branch3x3": ((192, (1, 1)), (320, (3, 3))),
    "branch7x7x3": ((192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, (3, 3))),
    "branch_pool": (),
}

_halving_pool = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))
_max_pool = functools.partial(nn.max_pool, window_shape=(3, 3), padding="SAME")
_average_pool = functools.partial(
    nn.avg_pool, window_shape=(3, 3), padding="SAME", count_include_pad=False
)


class ImageFeatures(NamedTuple):
    """What a network sees in each image.

    pool: the mean over all positions after the last block; FID, precision and recall. Of Inception
      2048 numbers.
    spatial: a few channels of all positions, row by row; sFID. Of Inception the first 7 after
      `Mixed_6d`, at 17 x 17 positions.
    logits: of the classes, for the Inception Score. Inception's 1008 come without their bias.
    """

    pool: Float[Array | np.ndarray, "B channels"]
    spatial: Float[Array | np.ndarray, "B values"]
    logits: Float[Array | np.ndarray, "B classes"]


class NormedConv(nn.Module):
    """Convolution, batch norm with its fixed statistics, ReLU."""

    channels: int
    kernel: tuple[int, int]
    strides: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Float[Array, "B _ _ _"]) -> Float[Array, "B _ _ _"]:
        x = nn.Conv(
            self.channels,
            self.kernel,
            strides=self.strides,
            padding=self.padding,
            use_bias=False,
            precision=_EXACT,
            kernel_init=_he_normal,
            name="conv",
        )(x)
        shape = (self.channels,)
        scale = self.param("bn_scale", nn.initializers.ones, shape)
        bias = self.param("bn_bias", nn.initializers.zeros, shape)
        mean = self.param("bn_mean", nn.initializers.zeros, shape)
        variance = self.param("bn_var", nn.initializers.ones, shape)
        return nn.relu((x - mean) * (scale * jax.lax.rsqrt(variance + 1e-3)) + bias)


class Block(nn.Module):
    """Several branches side by side, their results concatenated.

    pool: what the branch `branch_pool` begins with.
    halves: whether the branches end with strides of 2, without padding.
    """

    branches: Branches
    pool: Callable[[Array], Array]
    halves: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B _ _ _"]) -> Float[Array, "B _ _ _"]:
        return jnp.concatenate([self._branch(name, x) for name in self.branches], axis=-1)

    def _branch(self, name: str, x: Float[Array, "B _ _ _"]) -> Float[Array, "B _ _ _"]:
        if name == "branch_pool":
            x = self.pool(x)
        steps = self.branches[name]
        for number, (channels, *kernels) in enumerate(steps, start=1):
            place = f"_{number}" if len(steps) > 1 else ""
            ends_halved = self.halves and number == len(steps)
            options = {"strides": 2, "padding": "VALID"} if ends_halved else {}
            seen = [
                NormedConv(channels, kernel, name=f"{name}{place}{letter}", **options)(x)
                for kernel, letter in zip(kernels, "ab" if len(kernels) > 1 else [""], strict=True)
            ]
            x = jnp.concatenate(seen, axis=-1)
        return x


class Inception(nn.Module):
    """Looks at images in [-1, 1] of any size, in float32 of full precision.

    Of other Inceptions it differs in the border of its average pooling, which does not count, and
    in its last block, which pools maxima.
    """

    @nn.compact
    def __call__(self, images: Float[Array, "B height width 3"]) -> ImageFeatures:
        pixels = resize.bilinear_tf1((images + 1) * 127.5, (_NATIVE_SIZE, _NATIVE_SIZE))
        x = (pixels - 128) / 128
        x = NormedConv(32, (3, 3), strides=2, padding="VALID", name="Conv2d_1a_3x3")(x)
        x = NormedConv(32, (3, 3), padding="VALID", name="Conv2d_2a_3x3")(x)
        x = NormedConv(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = _halving_pool(x)
        x = NormedConv(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = NormedConv(192, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(x)
        x = _halving_pool(x)
        for name, pool_channels in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = Block(_fine(pool_channels), _average_pool, name=f"Mixed_{name}")(x)
        x = Block(_FINE_TO_MIDDLE, _halving_pool, halves=True, name="Mixed_6a")(x)
        for name, channels in (("6b", 128), ("6c", 160), ("6d", 160)):
            x = Block(_middle(channels), _average_pool, name=f"Mixed_{name}")(x)
        spatial = x[..., :_SPATIAL_CHANNELS].reshape(len(x), -1)
        x = Block(_middle(192), _average_pool, name="Mixed_6e")(x)
        x = Block(_MIDDLE_TO_COARSE, _halving_pool, halves=True, name="Mixed_7a")(x)
        x = Block(_COARSE, _average_pool, name="Mixed_7b")(x)
        x = Block(_COARSE, _max_pool, name="Mixed_7c")(x)
        pool = x.mean(axis=(1, 2))
        logits = nn.Dense(
            _NUM_CLASSES, use_bias=False, precision=_EXACT, kernel_init=_he_normal, name="fc"
        )(pool)
        return ImageFeatures(pool, spatial, logits)
