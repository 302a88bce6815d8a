"""Training content and structure generator together on tokenized images (paper, Appendix A)."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from nvg_jax import granularity, keys, sharding, visualize
from nvg_jax.errors import UserError
from nvg_jax.frozen.weights import Frozen
from nvg_jax.generator import sampler
from nvg_jax.generator.repa import Alignment
from nvg_jax.granularity import GranularitySequence
from nvg_jax.tokenizer import inference
from nvg_jax.tokenizer.model import Tokenizer, canvas_scales
from nvg_jax.training import accumulation, optimizer
from nvg_jax.training.loop import Batch, Metrics, Schedule
from nvg_jax.training.state import TrainState


class GeneratorTask:
    """The loop's task: both losses over all stages, on images tokenized on the fly.

    A batch may also hold tokenized images in place of images. With a weight for REPA, the content
    model's tokens are aligned with DINOv2's features of the image.
    """

    name = "generator"
    sample = staticmethod(sampler.sample)

    def __init__(
        self,
        generator: Any,
        tokenizer: Tokenizer,
        tokenizer_variables: Any,
        config: ConfigDict,
        schedule: Schedule,
        settings: sampler.Settings,
        dinov2: Frozen | None = None,
    ):
        """generator: a `Generator`; of a subclass what it trains. config: the generator's training
        config. settings: for the pictures on the way.

        UserError if REPA aligns a block that the generator does not have.
        """
        self.tokenizer = tokenizer
        self.architecture = generator.architecture
        self.frozen = {"tokenizer": tokenizer_variables}
        self._config = config
        self._alignment = None
        if config.repa.weight:
            stack = generator.sizes.content
            if not 1 <= config.repa.depth <= stack.depth:
                raise UserError(
                    f"config.generator.training.repa.depth={config.repa.depth} is not one of the "
                    f"{stack.depth} blocks: choose one of them, or set repa.weight to 0"
                )
            self.frozen["dinov2"] = dinov2.variables
            self._alignment = Alignment(dinov2.module, config.repa.hidden, stack.dtype)
            generator = dataclasses.replace(generator, tap=config.repa.depth)
        self.generator = generator
        self._optimizer = optimizer.create(config, schedule.num_steps)
        self._settings = settings

    def init_state(self, key: Key[Array, ""], variables: Any = None) -> TrainState:
        """The state before the first step, from random variables unless some are given."""
        helpers = {}
        if self._alignment:
            width = self.generator.sizes.content.width
            helpers["projector"] = self._alignment.init_params(keys.named(key, "repa"), width)
        variables = variables or self.generator.init_variables(key)
        return TrainState.create(variables, self._optimizer, helpers)

    def step(
        self, state: TrainState, frozen: Any, batch: Batch, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        """One optimizer step."""
        # One key for each image, so that it does not matter how the batch is divided.
        image_keys = jax.random.split(keys.named(key, "images"), batch["label"].shape[0])
        grads, metrics = accumulation.gradients(
            functools.partial(self.loss, frozen),
            state.params,
            {**batch, "key": image_keys},
            keys.named(key, "microbatches"),
            self._config.microbatches,
        )
        metrics["gradient_norm"] = optax.tree.norm(grads)
        return state.update(grads, self._optimizer, self._config.ema_decay), metrics

    def loss(
        self, frozen: Any, params: Any, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss over a part of a batch, with a `key` for each image, and metrics."""
        config, generator = self._config, self.generator
        sequence, canvases = self._tokenized(frozen["tokenizer"], batch)
        class_id = self._some_dropped(batch["label"], batch["key"])
        align = None
        if self._alignment:
            align = functools.partial(
                self._alignment.loss,
                params["projector"],
                frozen["dinov2"],
                batch["image"],
                generator.sizes.grid,
                config.stage_stride,
            )
        by_stage = generator.content.loss(
            params["content"],
            sequence,
            canvases,
            class_id,
            canvas_scales(frozen["tokenizer"]),
            generator.content.noise(batch["key"]),
            keys.named(key, "content"),
            align,
            config.stage_stride,
            generator.content.guidance(batch["key"]),
        )
        by_stage["structure"] = generator.structure.loss(
            params["structure"],
            sequence,
            canvases,
            class_id,
            batch["key"],
            keys.named(key, "structure"),
            stage_stride=config.stage_stride,
        )
        mean = {name: jnp.mean(value) for name, value in by_stage.items()}
        loss = mean["content"] + mean["structure"]
        if "final" in mean:
            loss += mean["final"]
        if "repa" in mean:
            loss += config.repa.weight * mean["repa"]
        metrics = {
            "loss": loss,
            **{f"loss/{name}": value for name, value in mean.items()},
            **{f"{name}_by_stage": value for name, value in by_stage.items()},
            "token_counts": self._token_counts(sequence),
        }
        return loss, metrics

    def without_remat(self) -> GeneratorTask:
        """The same task, of which nothing is computed once more to save memory."""
        sizes = self.generator.sizes.without_remat()
        if sizes == self.generator.sizes:
            return self
        task = copy.copy(self)
        task.generator = dataclasses.replace(self.generator, sizes=sizes)
        return task

    def _some_dropped(self, label: Array, image_keys: Key[Array, "B"]) -> Array:
        """The class ids, some of them replaced by "no class"."""

        def is_dropped(key: Key[Array, ""]) -> Array:
            return jax.random.bernoulli(
                keys.named(key, "class dropout"), self._config.class_dropout
            )

        return jnp.where(jax.vmap(is_dropped)(image_keys), self.generator.sizes.num_classes, label)

    def _tokenized(
        self, variables: Any, batch: Batch
    ) -> tuple[GranularitySequence, Float[Array, "B canvases L C"]]:
        """The sequences of a batch and their canvases."""
        if "image" in batch:
            return self.tokenizer.apply(variables, batch["image"], method="tokenize")
        sequence = GranularitySequence(batch["structure"], batch["tokens"])
        return sequence, self.tokenizer.apply(variables, sequence, method=Tokenizer.canvases)

    def _token_counts(self, sequence: GranularitySequence) -> Int[Array, "stages V"]:
        tokens = self.tokenizer.by_stage(sequence.tokens)
        return granularity.token_counts(tokens, self.tokenizer.vocab_size)

    def pictures(self, state: TrainState, batch: Batch) -> dict[str, np.ndarray]:
        """A grid of samples of the first classes, as uint8."""
        count = 16
        sequence = self.sample(
            self.tokenizer,
            self.generator,
            self._settings,
            self.frozen["tokenizer"],
            state.ema,
            np.arange(count, dtype=np.int32) % self.generator.sizes.num_classes,
            jax.random.split(keys.named(0, "pictures"), count),
        )
        images = inference.images_of(self.tokenizer, self.frozen["tokenizer"], sequence)
        return {"samples": visualize.grid(sharding.on_host(images))}
