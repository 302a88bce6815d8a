"""LPIPS, the learned perceptual distance (Zhang et al., 2018), on features of VGG16."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from nvg_jax.errors import UserError
from nvg_jax.precision import conv_precision

# Mean and standard deviation of ImageNet's pixels, for images in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)

SMALLEST_IMAGE = 16  # Pixels, of which four poolings leave one.
_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions


def check_size(image_size: int, advice: str) -> None:
    """UserError, ending with the advice, for images of a side that LPIPS cannot look at."""
    if image_size < SMALLEST_IMAGE:
        raise UserError(
            f"LPIPS cannot compare images of {image_size} pixels, only from {SMALLEST_IMAGE} on: "
            f"{advice}"
        )


class VGG16(nn.Module):
    """The activations before each pooling, and the last: relu1_2, 2_2, 3_3, 4_3, 5_3.

    The convolutions are numbered by their place among all layers, as torchvision does.
    """

    precision: str

    @nn.compact
    def __call__(self, x: Float[Array, "B height width 3"]) -> list[Float[Array, "B _ _ _"]]:
        activations = []
        place = 0
        for channels, convolutions in _STAGES:
            if activations:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
                place += 1
            for _ in range(convolutions):
                x = nn.Conv(
                    channels,
                    (3, 3),
                    padding=1,
                    precision=conv_precision(self.precision),
                    kernel_init=nn.initializers.he_normal(),
                    name=f"conv{place}",
                )(x)
                x = nn.relu(x)
                place += 2
            activations.append(x)
        return activations


class LPIPS(nn.Module):
    """The distance of two batches of images in [-1, 1] whose sides are at least SMALLEST_IMAGE.

    precision: of the convolutions, as `conv_precision` names it: enough for a loss by default;
      'float32' to measure.
    """

    precision: str = "tensorfloat32"

    @nn.compact
    def __call__(
        self, a: Float[Array, "B height width 3"], b: Float[Array, "B height width 3"]
    ) -> Float[Array, "B"]:
        vgg = VGG16(self.precision, name="vgg")
        # One call for each: in a concatenated batch, images without a gradient would get one.
        features = [vgg((x - jnp.array(_SHIFT)) / jnp.array(_SCALE)) for x in (a, b)]
        distance = jnp.zeros(a.shape[0])
        for level, (of_a, of_b) in enumerate(zip(*features, strict=True)):
            channels = of_a.shape[-1]
            head = nn.Conv(
                1,
                (1, 1),
                use_bias=False,
                precision=conv_precision(self.precision),
                kernel_init=nn.initializers.constant(1 / channels),
                name=f"head{level}",
            )
            difference = jnp.square(_unit(of_a) - _unit(of_b))
            distance += head(difference).mean(axis=(1, 2, 3))
        return distance


def _unit(x: Float[Array, "B height width C"]) -> Float[Array, "B height width C"]:
    """Each position's channels scaled to length 1, or 0 where all of them are 0."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # The root's gradient is infinite at 0.
    return x / (jnp.sqrt(jnp.maximum(square, 1e-30)) + 1e-10)
