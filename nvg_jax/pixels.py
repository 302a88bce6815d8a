"""Images as numbers: 8-bit pixels, as files hold them, and [-1, 1], as models see them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8


def from_uint8(
    pixels: UInt8[Array | np.ndarray, "*shape"],
) -> Float[Array | np.ndarray, "*shape"]:
    """0..255 to float32 in [-1, 1]: `x / 127.5 - 1`; on the devices if they are there."""
    if isinstance(pixels, jax.Array):
        return _from_uint8(pixels)
    images = np.divide(pixels, 127.5, dtype=np.float32)
    images -= 1
    return images


@jax.jit
def _from_uint8(pixels: Array) -> Array:
    """A program of its own, since as a part of others it could be rounded in other ways."""
    return pixels.astype(jnp.float32) / 127.5 - 1


def to_uint8(images: Float[Array | np.ndarray, "*shape"]) -> UInt8[Array | np.ndarray, "*shape"]:
    """Values in [-1, 1], clipped, to the nearest of 0..255; on the devices if they are there."""
    xp = jnp if isinstance(images, jax.Array) else np
    return xp.clip(xp.round((images.astype(np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def as_stored(images: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Images in [-1, 1] as they come back from a file of 8-bit pixels."""
    return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5) / 127.5 - 1
