"""Differentiable augmentation of what a discriminator sees (Zhao et al., 2020).

Each image draws its own numbers; gradients flow through to the images.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Images = Float[Array, "B height width 3"]


def augment(images: Images, key: Key[Array, ""]) -> Images:
    """Translation by up to 1/8 of the side, colour jitter, and a cut-out of 1/5 of the side."""
    keys = jax.random.split(key, 5)
    images = translate(images, keys[0], 1 / 8)
    images = shift_brightness(images, keys[1])
    images = scale_saturation(images, keys[2])
    images = scale_contrast(images, keys[3])
    return cut_out(images, keys[4], 0.2)


def translate(images: Images, key: Key[Array, ""], ratio: float) -> Images:
    """Moves images by whole pixels, up to `ratio` of each side; what comes in is zero."""
    reach = [round(ratio * side) for side in images.shape[1:3]]
    padded = jnp.pad(images, ((0, 0), *((r, r) for r in reach), (0, 0)))
    starts = jax.random.randint(key, (len(images), 2), 0, 2 * jnp.array(reach) + 1)

    def window(image: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(image, (start[0], start[1], 0), images.shape[1:])

    return jax.vmap(window)(padded, starts)


def shift_brightness(images: Images, key: Key[Array, ""]) -> Images:
    """Adds a number in [-0.5, 0.5)."""
    return images + _uniform(key, images) - 0.5


def scale_saturation(images: Images, key: Key[Array, ""]) -> Images:
    """Scales the distance of each pixel from its grey by a number in [0, 2)."""
    grey = jnp.mean(images, axis=-1, keepdims=True)
    return grey + 2.0 * _uniform(key, images) * (images - grey)


def scale_contrast(images: Images, key: Key[Array, ""]) -> Images:
    """Scales the distance from the image's mean by a number in [0.5, 1.5)."""
    mean = jnp.mean(images, axis=(1, 2, 3), keepdims=True)
    return mean + (0.5 + _uniform(key, images)) * (images - mean)


def cut_out(images: Images, key: Key[Array, ""], ratio: float) -> Images:
    """Sets a rectangle of `ratio` of each side to zero; it may reach over the border."""
    batch, height, width, _ = images.shape
    inside = []
    for axis_key, side in zip(jax.random.split(key), (height, width), strict=True):
        size = round(ratio * side)
        # The first pixel of the rectangle whose centre lies anywhere in the image.
        start = jax.random.randint(axis_key, (batch, 1), 0, side + 1 - size % 2) - size // 2
        pixel = jnp.arange(side)
        inside.append((start <= pixel) & (pixel < start + size))
    rectangle = inside[0][:, :, None, None] & inside[1][:, None, :, None]
    return jnp.where(rectangle, 0.0, images)


def _uniform(key: Key[Array, ""], images: Images) -> Float[Array, "B 1 1 1"]:
    return jax.random.uniform(key, (len(images), 1, 1, 1))
