"""Random numbers: one root, `config.seed`, and a name for every purpose.

Two purposes never share their numbers, nor do two runs with neighbouring seeds.
"""

from __future__ import annotations

import zlib

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key


def named(seed: int | Key[Array, ""], *names: str) -> Key[Array, ""]:
    """The key of a purpose: the root of `seed`, or a key, folded with each name in turn."""
    key = jax.random.key(seed) if isinstance(seed, int) else seed
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return key


def integer(seed: int, *names: str) -> int:
    """A number in [0, 2^32) for a purpose, for Grain and NumPy, which take no keys."""
    words = [zlib.crc32(name.encode()) for name in names]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1)[0])


def normal(
    image_keys: Key[Array, "B"], name: str, shape: tuple[int, ...]
) -> Float[Array, "B *shape"]:
    """Normal numbers of each image for a purpose: they depend on the image's key alone."""
    return jax.vmap(lambda key: jax.random.normal(named(key, name), shape))(image_keys)


def uniform(
    image_keys: Key[Array, "B"], name: str, shape: tuple[int, ...]
) -> Float[Array, "B *shape"]:
    """Uniform numbers in [0, 1) of each image for a purpose."""
    return jax.vmap(lambda key: jax.random.uniform(named(key, name), shape))(image_keys)


def of_stage(
    image_keys: Key[Array, "B"], name: str, stage: int | Int[Array, ""]
) -> Key[Array, "B"]:
    """The keys of images for a purpose at a stage."""
    return jax.vmap(lambda key: jax.random.fold_in(named(key, name), stage))(image_keys)
