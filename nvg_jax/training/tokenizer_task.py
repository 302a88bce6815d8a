"""Training the tokenizer (paper, Appendix A)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from nvg_jax import granularity, sampling, visualize
from nvg_jax.evaluation.reconstruction import token_counts
from nvg_jax.models.tokenizer import Tokenizer
from nvg_jax.training import optimizer
from nvg_jax.training.state import TrainState

Batch = dict[str, jax.Array]


class TokenizerTask:
    """Reconstruction and quantization loss; the codebook warms up in the first steps.

    The total is a sum of named terms: what else judges a reconstruction is added beside `l1`.
    """

    name = "tokenizer"

    def __init__(self, tokenizer: Tokenizer, config: ConfigDict, num_steps: int, epoch_steps: int):
        """config: the tokenizer's training config."""
        self.tokenizer = tokenizer
        self.architecture = tokenizer.architecture
        self.warm_up_steps = round(config.warm_up_epochs * epoch_steps)
        self._ema_decay = config.ema_decay
        self._optimizer = optimizer.create(config, num_steps)

    def init_variables(self, key: jax.Array) -> Any:
        return self.tokenizer.init(key, self.tokenizer.example())

    def init_state(self, variables: Any) -> TrainState:
        return TrainState.create(variables, self._optimizer)

    def step(
        self, state: TrainState, batch: Batch, key: jax.Array, step: int
    ) -> tuple[TrainState, dict[str, Array]]:
        """One optimizer step; `state` is donated."""
        return self._step(state, batch, warm_up=step < self.warm_up_steps)

    @functools.partial(jax.jit, static_argnums=0, static_argnames="warm_up", donate_argnums=1)
    def _step(
        self, state: TrainState, batch: Batch, warm_up: bool
    ) -> tuple[TrainState, dict[str, Array]]:
        images = batch["image"]

        def loss_fn(params):
            variables = {**state.ema, "params": params}
            output = self.tokenizer.apply(variables, images, warm_up)
            terms = {
                "l1": jnp.mean(jnp.abs(output.images - images)),
                "quantization": output.quantized.loss,
            }
            return sum(terms.values()), (terms, output.quantized)

        grads, (terms, quantized) = jax.grad(loss_fn, has_aux=True)(state.params)
        errors = jnp.mean(
            (quantized.canvases[:, 1:] - quantized.canvases[:, -1:]) ** 2, axis=(0, 2, 3)
        )
        metrics = {
            "loss": sum(terms.values()),
            **terms,
            "gradient_norm": optax.tree.norm(grads),
            "canvas_error_by_stage": errors,
            "token_counts": token_counts(quantized.tokens, self.tokenizer.vocab_size),
        }
        return state.update(grads, self._optimizer, self._ema_decay), metrics

    def pictures(self, state: TrainState, batch: Batch) -> dict[str, np.ndarray]:
        """The strip of a few reconstructions beside their originals, as uint8."""
        images = batch["image"][:4]
        return {"reconstructions": reconstruction_strips(self.tokenizer, state.ema, images)}


def reconstruction_strips(
    tokenizer: Tokenizer, variables: Any, images: Float[Array, "B H W 3"]
) -> np.ndarray:
    """Coarse-to-fine strips of images, each with its original, as one uint8 picture."""
    sequence, _ = tokenize(tokenizer, variables, images)
    stages = sampling.decode_stages(tokenizer, variables, sequence)
    return visualize.strips(
        visualize.to_uint8(stages),
        np.asarray(sequence.structure),
        tokenizer.grid,
        originals=visualize.to_uint8(images),
    )


@functools.partial(jax.jit, static_argnames="tokenizer")
def tokenize(
    tokenizer: Tokenizer, variables: Any, images: Float[Array, "B H W 3"]
) -> tuple[granularity.GranularitySequence, Float[Array, "B S L C"]]:
    """The sequences of a batch of images and their canvases."""
    return tokenizer.apply(variables, images, method="tokenize")


@functools.partial(jax.jit, static_argnames="tokenizer")
def canvas_moments(
    tokenizer: Tokenizer, variables: Any, images: Float[Array, "B H W 3"]
) -> tuple[Float[Array, "S"], Float[Array, "S"]]:
    """Mean and mean square of each canvas over a batch."""
    _, canvases = tokenizer.apply(variables, images, method="tokenize")
    return jnp.mean(canvases, axis=(0, 2, 3)), jnp.mean(canvases**2, axis=(0, 2, 3))


def with_canvas_scales(variables: Any, moments: list[tuple[np.ndarray, np.ndarray]]) -> Any:
    """Sets `canvas_scales` to 1 / std of each canvas, from the moments of some batches."""
    mean, square = np.mean(moments, axis=0, dtype=np.float64)
    std = np.sqrt(np.maximum(square - mean**2, 1e-12))
    std[0] = 1.0  # The canvas before stage 0 is zero.
    scales = jnp.asarray(1.0 / std, jnp.float32)
    return {**variables, "stats": {"quantizer": {"canvas_scales": scales}}}
