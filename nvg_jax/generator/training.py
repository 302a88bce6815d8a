"""Training content and structure generator together on tokenized images (paper, Appendix A)."""

from __future__ import annotations

import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from nvg_jax import pixels, sharding, visualize
from nvg_jax.errors import UserError
from nvg_jax.evaluation.reconstruction import token_counts
from nvg_jax.frozen import vit
from nvg_jax.frozen.weights import Frozen
from nvg_jax.generator import losses
from nvg_jax.generator import sampler as sampling
from nvg_jax.generator.model import Generator
from nvg_jax.generator.repa import Projector, misalignment
from nvg_jax.granularity import GranularitySequence
from nvg_jax.tokenizer.model import Tokenizer
from nvg_jax.training import accumulation, flops, optimizer
from nvg_jax.training.state import TrainState

Batch = dict[str, jax.Array]


class GeneratorTask:
    """Content and structure losses over all stages, on images tokenized on the fly.

    A batch may also hold tokenized images in place of images. With a weight for REPA, the content
    model's tokens are aligned with DINOv2's features of the image.
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
        dinov2: Frozen | None = None,
    ):
        """config: the generator's training config. settings: for the pictures on the way.

        UserError if REPA aligns a block that the generator does not have.
        """
        self.tokenizer = tokenizer
        self.architecture = generator.architecture
        self._frozen = {"tokenizer": tokenizer_variables}
        self._projector = None
        if config.repa.weight:
            if not 1 <= config.repa.depth <= generator.depth:
                raise UserError(
                    f"config.generator.training.repa.depth={config.repa.depth} is not one of the "
                    f"{generator.depth} blocks: choose one of them, or set repa.weight to 0"
                )
            self._dinov2 = dinov2.module.clone(dtype=generator.dtype)
            self._frozen["dinov2"] = dinov2.variables
            self._projector = Projector(config.repa.hidden, self._dinov2.width, generator.dtype)
            generator = generator.clone(tap=config.repa.depth)
        self.generator = generator
        self._weights = {"repa": config.repa.weight}
        self._class_dropout = config.class_dropout
        self._ema_decay = config.ema_decay
        self._microbatches = config.microbatches
        self._optimizer = optimizer.create(config, num_steps)
        self._settings = settings

    def init_variables(self, key: jax.Array) -> Any:
        return self.generator.init(key, self.generator.example())

    def init_state(self, variables: Any, key: jax.Array) -> TrainState:
        helpers = {}
        if self._projector:
            tokens = jnp.zeros((1, self.generator.content_width))
            helpers["projector"] = self._projector.init(key, tokens)["params"]
        return TrainState.create(variables, self._optimizer, helpers)

    def step(
        self, state: TrainState, batch: Batch, key: jax.Array, step: int
    ) -> tuple[TrainState, dict[str, Array]]:
        """One optimizer step; `state` is donated, and stays where it is."""
        return self._step(state, self._frozen, batch, key, places=sharding.places(state))

    def trace(self, state: TrainState, batch: dict[str, Any], key: Any) -> jax.stages.Traced:
        """A step as a program; all arguments may be abstract."""
        return type(self)._step.trace(
            self, state, self._frozen, batch, key, places=sharding.places(state)
        )

    def count_flops(self, state: TrainState, batch: dict[str, Any], key: Any) -> float:
        """Without what is computed once more to save memory."""
        once = copy.copy(self)
        once.generator = self.generator.clone(remat=False)
        return flops.count(once.trace(state, batch, key).jaxpr)

    @functools.partial(jax.jit, static_argnums=0, static_argnames="places", donate_argnums=1)
    def _step(
        self,
        state: TrainState,
        frozen: Any,
        batch: Batch,
        key: jax.Array,
        places: tuple[Any, ...],
    ) -> tuple[TrainState, dict[str, Array]]:
        dropout_key, loss_key, noise_key, time_key = jax.random.split(key, 4)
        # Drawn for the whole batch, so that it does not matter how it is divided.
        draws = self._draws(batch["label"].shape[0], dropout_key, noise_key, time_key)
        batch = {**batch, **draws}

        def loss_fn(params, batch, key):
            variables = {"params": params}
            sequence, canvases = self._tokenized(frozen["tokenizer"], batch)
            dropped = batch["class_dropped"]
            class_id = jnp.where(dropped, self.generator.num_classes, batch["label"])
            rngs = {"drop_path": key}
            by_stage = losses.content_losses(
                self.generator,
                variables,
                sequence,
                canvases,
                class_id,
                frozen["tokenizer"]["stats"]["quantizer"]["canvas_scales"],
                rngs,
                batch.get("canvas_noise"),
                self._alignment(frozen, params, batch) if self._projector else None,
            )
            by_stage["structure"] = losses.structure_losses(
                self.generator,
                variables,
                sequence,
                canvases,
                class_id,
                batch["structure_noise"],
                batch["flow_time"],
                rngs,
            )
            terms = {name: jnp.mean(value) for name, value in by_stage.items()}
            loss = sum(self._weights.get(name, 1.0) * term for name, term in terms.items())
            metrics = {
                "loss": loss,
                **terms,
                **{f"{name}_by_stage": value for name, value in by_stage.items()},
                "token_counts": token_counts(sequence.tokens, self.generator.vocab_size),
            }
            return loss, metrics

        grads, metrics = accumulation.gradients(
            loss_fn, state.params, batch, loss_key, self._microbatches
        )
        metrics["gradient_norm"] = optax.tree.norm(grads)
        new_state = state.update(grads, self._optimizer, self._ema_decay)
        return sharding.keep(new_state, places), metrics

    def _draws(
        self, batch_size: int, dropout_key: jax.Array, noise_key: jax.Array, time_key: jax.Array
    ) -> Batch:
        """The random numbers of every image."""
        length, last_stage = self.generator.num_positions, self.generator.last_stage
        draws = {
            "class_dropped": jax.random.bernoulli(dropout_key, self._class_dropout, (batch_size,)),
            "structure_noise": jax.random.normal(noise_key, (batch_size, length, last_stage)),
            "flow_time": jax.nn.sigmoid(jax.random.normal(time_key, (batch_size, last_stage - 1))),
        }
        if self.generator.noised_canvas:
            shape = (batch_size, length, self.generator.latent_channels)
            canvas_key = jax.random.fold_in(noise_key, 1)
            draws["canvas_noise"] = jax.random.normal(canvas_key, shape)
        return draws

    def _tokenized(
        self, variables: Any, batch: Batch
    ) -> tuple[GranularitySequence, Float[Array, "B S L C"]]:
        """The sequences of a batch and their canvases."""
        if "image" in batch:
            return self.tokenizer.apply(variables, batch["image"], method="tokenize")
        sequence = GranularitySequence(batch["structure"], batch["tokens"])
        return sequence, self.tokenizer.apply(variables, sequence, method="canvases")

    def _alignment(self, frozen: Any, params: Any, batch: Batch):
        """The loss by stage of tapped tokens."""
        features = vit.dinov2_features(
            self._dinov2, frozen["dinov2"], batch["image"], self.generator.grid
        )

        def loss(tokens: Float[Array, "B K1 L D"]) -> Float[Array, "K1"]:
            projected = self._projector.apply({"params": params["projector"]}, tokens)
            return misalignment(projected, jax.lax.stop_gradient(features))

        return loss

    def pictures(self, state: TrainState, batch: Batch) -> dict[str, np.ndarray]:
        """A grid of samples of the first classes, as uint8."""
        count = 16
        class_id = jnp.arange(count) % self.generator.num_classes
        keys = jax.random.split(jax.random.key(0), count)
        sequence = sampling.sample(
            self.tokenizer,
            self.generator,
            self._settings,
            self._frozen["tokenizer"],
            state.ema,
            class_id,
            keys,
        )
        images = sampling.decode(self.tokenizer, self._frozen["tokenizer"], sequence)
        return {"samples": visualize.grid(pixels.to_uint8(sharding.on_host(images)))}
