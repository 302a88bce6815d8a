"""Training the tokenizer (paper, Appendix A)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from nvg_jax import granularity, pixels, sharding, visualize
from nvg_jax.errors import UserError
from nvg_jax.frozen.lpips import check_size
from nvg_jax.frozen.weights import Frozen
from nvg_jax.tokenizer import inference
from nvg_jax.tokenizer.adversary import Adversary
from nvg_jax.tokenizer.model import Tokenizer
from nvg_jax.training import accumulation, optimizer
from nvg_jax.training.loop import Batch, Metrics, Schedule
from nvg_jax.training.state import TrainState


class TokenizerTask:
    """The loop's task: the tokenizer's losses, and a discriminator trained in the same step.

    The codebook warms up in the first steps. Without the weights of `lpips` and `adversarial` the
    frozen networks are not needed.
    """

    name = "tokenizer"

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ConfigDict,
        schedule: Schedule,
        lpips: Frozen | None = None,
        dino: Frozen | None = None,
    ):
        """config: the tokenizer's training config.

        UserError if the frozen networks cannot look at images of the tokenizer's size.
        """
        self.tokenizer = tokenizer
        self.architecture = tokenizer.architecture
        self.frozen: dict[str, Any] = {}
        self._config = config
        self._codebook_warmup_steps = round(config.codebook_warmup_epochs * schedule.epoch_steps)
        self._lpips = self._adversary = None
        side = tokenizer.image_size
        if config.lpips_weight:
            check_size(side, "set config.tokenizer.training.lpips_weight to 0")
            self._lpips = lpips.module.clone(precision=tokenizer.arithmetic.precision)
            self.frozen["lpips"] = lpips.variables
        if config.adversarial_weight:
            seen, patch = config.discriminator.input_size, dino.module.patch_size
            if seen > side or seen % patch:
                raise UserError(
                    f"config.tokenizer.training.discriminator.input_size={seen} is not a multiple "
                    f"of {patch} up to the image size, {side}"
                )
            self._adversary = Adversary(dino.module, config, schedule.num_steps)
            self.frozen["dino"] = dino.variables
        self._optimizer = optimizer.create(config, schedule.num_steps)

    def init_state(self, key: Key[Array, ""], variables: Any = None) -> TrainState:
        """The state before the first step, from random variables unless some are given."""
        adversary = self._adversary.init(key) if self._adversary else None
        variables = variables or self.tokenizer.init_variables(key)
        return TrainState.create(variables, self._optimizer, adversary=adversary)

    def step(
        self, state: TrainState, frozen: Any, batch: Batch, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        """One step of both optimizers."""
        config = self._config
        codebook_warmup = state.step < self._codebook_warmup_steps

        def loss_fn(trained: Any, batch: Batch, key: Key[Array, ""]) -> tuple[Array, Any]:
            images = batch["image"]
            variables = {**state.ema, "params": trained["tokenizer"]}
            output = self.tokenizer.apply(variables, images, codebook_warmup)
            l1 = jnp.mean(jnp.abs(output.images - images))
            quantization = output.quantized.loss
            loss = l1 + quantization
            metrics = {"loss/l1": l1, "loss/quantization": quantization}
            if self._lpips:
                lpips = jnp.mean(self._lpips.apply(frozen["lpips"], output.images, images))
                loss += config.lpips_weight * lpips
                metrics["loss/lpips"] = lpips
            discriminator, judged = 0.0, {}
            if self._adversary:
                adversarial, discriminator, judged = self._adversary.losses(
                    trained["discriminator"],
                    state.adversary,
                    frozen["dino"],
                    images,
                    output.images,
                    key,
                )
                loss += config.adversarial_weight * adversarial
                metrics |= {"loss/adversarial": adversarial, "loss/discriminator": discriminator}
            canvases = output.quantized.canvases
            metrics |= {
                "loss": loss,
                "canvas_error_by_stage": jnp.mean(
                    (canvases[:, 1:] - canvases[:, -1:]) ** 2, axis=(0, 2, 3)
                ),
                "token_counts": granularity.token_counts(
                    self.tokenizer.by_stage(output.quantized.tokens), self.tokenizer.vocab_size
                ),
            }
            # One backward pass: neither loss has a gradient for the other side's parameters.
            return loss + discriminator, (metrics, judged)

        trained = {"tokenizer": state.params}
        if self._adversary:
            trained["discriminator"] = state.adversary.params
        grads, (metrics, judged) = accumulation.gradients(
            loss_fn, trained, {"image": batch["image"]}, key, config.microbatches
        )
        metrics["gradient_norm"] = optax.tree.norm(grads["tokenizer"])
        new_state = state.update(grads["tokenizer"], self._optimizer, config.ema_decay)
        if self._adversary:
            metrics["real_logit"], metrics["fake_logit"] = judged["logits"]
            adversary = self._adversary.update(state.adversary, grads["discriminator"], judged)
            new_state = new_state.replace(adversary=adversary)
        return new_state, metrics

    def without_remat(self) -> TokenizerTask:
        """The same task, of which nothing is computed once more to save memory."""
        if self.tokenizer.arithmetic.remat == "none":
            return self  # Whose step is traced once.
        task = copy.copy(self)
        arithmetic = dataclasses.replace(self.tokenizer.arithmetic, remat="none")
        task.tokenizer = self.tokenizer.clone(arithmetic=arithmetic)
        return task

    def pictures(self, state: TrainState, batch: Batch) -> dict[str, np.ndarray]:
        """The strip of a few reconstructions beside their originals, as uint8."""
        picture = reconstruction_strips(self.tokenizer, state.ema, batch["image"][:4])
        return {"reconstructions": picture}


def reconstruction_strips(
    tokenizer: Tokenizer, variables: Any, images: Float[Array | np.ndarray, "B height width 3"]
) -> np.ndarray:
    """Coarse-to-fine strips of images, each with its original, as one uint8 picture."""
    images = jnp.asarray(images)
    sequence = inference.sequences_of(tokenizer, variables, images)
    stage_images = inference.stage_images_of(tokenizer, variables, sequence)
    stage_images, structure, originals = sharding.on_host(
        (stage_images, sequence.structure, pixels.to_uint8(images))
    )
    rest = tokenizer.captions, originals, tokenizer.stages
    return visualize.strips(stage_images, structure, tokenizer.grid, *rest)


def with_canvas_scales(
    tokenizer: Tokenizer, variables: Any, batches: Iterable[Float[Array, "B height width 3"]]
) -> Any:
    """The variables with `canvas_scales` set to 1 / std of each canvas over batches of images.

    Those before stages that are not painted are ones.
    """
    moments = [
        sharding.on_host(inference.canvas_moments(tokenizer, variables, images))
        for images in batches
    ]
    mean, square = np.mean(moments, axis=0, dtype=np.float64)
    std = np.sqrt(np.maximum(square - mean**2, 1e-12))
    std[0] = 1.0  # The first canvas is zero.
    scales = np.ones(tokenizer.last_stage + 2, np.float32)
    scales[[*tokenizer.stages, -1]] = 1.0 / std
    return {**variables, "stats": {"quantizer": {"canvas_scales": jnp.asarray(scales)}}}
