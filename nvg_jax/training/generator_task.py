"""Training content and structure generator together on tokenized images (paper, Appendix A)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from nvg_jax import sampling, visualize
from nvg_jax.evaluation.reconstruction import token_counts
from nvg_jax.models.generator import Generator
from nvg_jax.models.tokenizer import Tokenizer
from nvg_jax.training import losses, optimizer
from nvg_jax.training.state import TrainState

Batch = dict[str, jax.Array]


class GeneratorTask:
    """Content and structure losses over all stages, on images tokenized on the fly.

    The total is a sum of named terms: what else guides the content model is added beside them.
    """

    name = "generator"

    def __init__(
        self,
        generator: Generator,
        tokenizer: Tokenizer,
        tokenizer_variables: Any,
        config: ConfigDict,
        num_steps: int,
        settings: sampling.Settings,
    ):
        """config: the generator's training config. settings: for the pictures on the way."""
        self.generator = generator
        self.tokenizer = tokenizer
        self.tokenizer_variables = tokenizer_variables
        self.architecture = generator.architecture
        self._class_dropout = config.class_dropout
        self._ema_decay = config.ema_decay
        self._optimizer = optimizer.create(config, num_steps)
        self._settings = settings

    def init_variables(self, key: jax.Array) -> Any:
        return self.generator.init(key, self.generator.example())

    def init_state(self, variables: Any) -> TrainState:
        return TrainState.create(variables, self._optimizer)

    def step(
        self, state: TrainState, batch: Batch, key: jax.Array, step: int
    ) -> tuple[TrainState, dict[str, Array]]:
        """One optimizer step; `state` is donated."""
        return self._step(state, self.tokenizer_variables, batch, key)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _step(
        self, state: TrainState, tokenizer_variables: Any, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, dict[str, Array]]:
        class_id, batch_size = batch["label"], batch["label"].shape[0]
        length, last_stage = self.generator.num_positions, self.generator.last_stage
        dropout_key, path_key, noise_key, time_key = jax.random.split(key, 4)
        sequence, canvases = self.tokenizer.apply(
            tokenizer_variables, batch["image"], method="tokenize"
        )
        dropped = jax.random.bernoulli(dropout_key, self._class_dropout, (batch_size,))
        class_id = jnp.where(dropped, self.generator.num_classes, class_id)
        noise = jax.random.normal(noise_key, (batch_size, length, last_stage))
        time = jax.nn.sigmoid(jax.random.normal(time_key, (batch_size, last_stage - 1)))
        rngs = {"drop_path": path_key}
        scales = tokenizer_variables["stats"]["quantizer"]["canvas_scales"]

        def loss_fn(params):
            variables = {"params": params}
            by_stage = losses.content_losses(
                self.generator, variables, sequence, canvases, class_id, scales, rngs
            )
            by_stage["structure"] = losses.structure_losses(
                self.generator, variables, sequence, canvases, class_id, noise, time, rngs
            )
            return sum(jnp.mean(losses_) for losses_ in by_stage.values()), by_stage

        (loss, by_stage), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        metrics = {
            "loss": loss,
            **{name: jnp.mean(value) for name, value in by_stage.items()},
            **{f"{name}_by_stage": value for name, value in by_stage.items()},
            "gradient_norm": optax.tree.norm(grads),
            "token_counts": token_counts(sequence.tokens, self.generator.vocab_size),
        }
        return state.update(grads, self._optimizer, self._ema_decay), metrics

    def pictures(self, state: TrainState, batch: Batch) -> dict[str, np.ndarray]:
        """A grid of samples of the first classes, as uint8."""
        count = 16
        class_id = jnp.arange(count) % self.generator.num_classes
        keys = jax.random.split(jax.random.key(0), count)
        sequence = sampling.sample(
            self.tokenizer,
            self.generator,
            self._settings,
            self.tokenizer_variables,
            state.ema,
            class_id,
            keys,
        )
        images = sampling.decode(self.tokenizer, self.tokenizer_variables, sequence)
        return {"samples": visualize.grid(visualize.to_uint8(images))}
