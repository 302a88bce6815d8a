"""Gradients of a large batch on few devices: micro-batches one after the other, in one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

Tree = Any
LossFunction = Callable[[Tree, Tree, Key[Array, ""]], tuple[Array, Tree]]


def gradients(
    loss_fn: LossFunction, params: Tree, batch: Tree, key: Key[Array, ""], num_microbatches: int
) -> tuple[Tree, Tree]:
    """Gradient and auxiliary output of a loss over a batch that may not fit at once.

    loss_fn: takes parameters, a micro-batch and its key; gives a mean over the micro-batch and a
    tree of auxiliary arrays. batch: arrays with the same leading axis, which `num_microbatches`
    divides; each device's share of a batch is divided, so nothing moves between devices.

    Returns the means over the micro-batches; auxiliary integers are counts and are summed.
    """
    gradient = jax.grad(loss_fn, has_aux=True)
    if num_microbatches == 1:
        return gradient(params, batch, key)

    def divide(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(-1, num_microbatches, *x.shape[1:]), 0, 1)

    microbatches = jax.tree.map(divide, batch)
    keys = jax.random.split(key, num_microbatches)

    def add(total: Tree, inputs: tuple[Tree, Array]) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, gradient(params, *inputs)), None

    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], microbatches), keys[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (microbatches, keys))

    def mean(x: Array) -> Array:
        return x if jnp.issubdtype(x.dtype, jnp.integer) else x / num_microbatches

    return jax.tree.map(mean, total)
