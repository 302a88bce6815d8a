"""What is done with a trained tokenizer, compiled once for each of them.

All run on the devices of the mesh that is set, over which the batch is split.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from nvg_jax import pixels
from nvg_jax.granularity import GranularitySequence
from nvg_jax.tokenizer.model import Tokenizer

Variables = Any


@functools.partial(jax.jit, static_argnames="tokenizer")
def sequences_of(
    tokenizer: Tokenizer, variables: Variables, images: Float[Array, "B height width 3"]
) -> GranularitySequence:
    """The sequences of images in [-1, 1]."""
    return tokenizer.apply(variables, images, method="tokenize")[0]


@functools.partial(jax.jit, static_argnames="tokenizer")
def latents_of(
    tokenizer: Tokenizer, variables: Variables, images: Float[Array, "B height width 3"]
) -> tuple[Float[Array, "B L C"], Int[Array, "B L"]]:
    """The latents of images in [-1, 1], not quantized, and their structures."""
    return tokenizer.apply(variables, images, method="cluster")


@functools.partial(jax.jit, static_argnames="tokenizer")
def decoded(
    tokenizer: Tokenizer, variables: Variables, canvas: Float[Array, "B L C"]
) -> UInt8[Array, "B height width 3"]:
    """The images of canvases, of any stage."""
    return pixels.to_uint8(tokenizer.apply(variables, canvas, method="decode"))


@functools.partial(jax.jit, static_argnames="tokenizer")
def images_of(
    tokenizer: Tokenizer, variables: Variables, sequence: GranularitySequence
) -> UInt8[Array, "B height width 3"]:
    """The images of finished sequences."""
    canvases = tokenizer.apply(variables, sequence, method="canvases")
    return decoded(tokenizer, variables, canvases[:, -1])


@functools.partial(jax.jit, static_argnames="tokenizer")
def stage_images_of(
    tokenizer: Tokenizer, variables: Variables, sequence: GranularitySequence
) -> UInt8[Array, "B stages height width 3"]:
    """The image of the canvas after each stage: the coarse-to-fine strip."""
    canvases = tokenizer.apply(variables, sequence, method="canvases")[:, 1:]
    batch, stages = canvases.shape[:2]
    flat = canvases.reshape(batch * stages, *canvases.shape[2:])
    images = decoded(tokenizer, variables, flat)
    return images.reshape(batch, stages, *images.shape[1:])


@functools.partial(jax.jit, static_argnames="tokenizer")
def canvas_moments(
    tokenizer: Tokenizer, variables: Variables, images: Float[Array, "B height width 3"]
) -> tuple[Float[Array, "canvases"], Float[Array, "canvases"]]:
    """Mean and mean square of each canvas over a batch."""
    _, canvases = tokenizer.apply(variables, images, method="tokenize")
    return jnp.mean(canvases, axis=(0, 2, 3)), jnp.mean(canvases**2, axis=(0, 2, 3))
