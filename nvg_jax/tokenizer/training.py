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

from nvg_jax import granularity, pixels, sharding, visualize
from nvg_jax.errors import UserError
from nvg_jax.evaluation.reconstruction import token_counts
from nvg_jax.frozen.lpips import check_size
from nvg_jax.frozen.weights import Frozen
from nvg_jax.generator.sampler import decode_stages
from nvg_jax.tokenizer.adversary import Adversary
from nvg_jax.tokenizer.model import Tokenizer
from nvg_jax.training import accumulation, flops, optimizer
from nvg_jax.training.state import TrainState

Batch = dict[str, jax.Array]


class TokenizerTask:
    """A sum of named losses, and a discriminator that is trained in the same step.

    The codebook warms up in the first steps. Without the weights of `lpips` and `adversarial` the
    frozen networks are not needed.
    """

    name = "tokenizer"

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ConfigDict,
        num_steps: int,
        epoch_steps: int,
        lpips: Frozen | None = None,
        dino: Frozen | None = None,
    ):
        """config: the tokenizer's training config.

        UserError if the frozen networks cannot look at images of the tokenizer's size.
        """
        self.tokenizer = tokenizer
        self.architecture = tokenizer.architecture
        self.warm_up_steps = round(config.warm_up_epochs * epoch_steps)
        self._weights = {"l1": 1.0, "quantization": 1.0}
        self._lpips = self._adversary = None
        self._frozen = {}
        side = tokenizer.image_size
        if config.lpips_weight:
            check_size(side, "set config.tokenizer.training.lpips_weight to 0")
            self._weights["lpips"] = config.lpips_weight
            self._lpips, self._frozen["lpips"] = lpips
        if config.adversarial_weight:
            seen, patch = config.discriminator.input_size, dino.module.patch_size
            if seen > side or seen % patch:
                raise UserError(
                    f"config.tokenizer.training.discriminator.input_size={seen} is not a multiple "
                    f"of {patch} up to the image size, {side}"
                )
            self._weights["adversarial"] = config.adversarial_weight
            self._adversary = Adversary(dino.module, config, num_steps)
            self._frozen["dino"] = dino.variables
        self._ema_decay = config.ema_decay
        self._microbatches = config.microbatches
        self._optimizer = optimizer.create(config, num_steps)

    def init_variables(self, key: jax.Array) -> Any:
        return self.tokenizer.init(key, self.tokenizer.example())

    def init_state(self, variables: Any, key: jax.Array) -> TrainState:
        adversary = self._adversary.init(key) if self._adversary else None
        return TrainState.create(variables, self._optimizer, adversary=adversary)

    def step(
        self, state: TrainState, batch: Batch, key: jax.Array, step: int
    ) -> tuple[TrainState, dict[str, Array]]:
        """One step of both optimizers; `state` is donated, and stays where it is."""
        warm_up = step < self.warm_up_steps
        return self._step(
            state, self._frozen, batch, key, warm_up=warm_up, places=sharding.places(state)
        )

    def trace(self, state: TrainState, batch: dict[str, Any], key: Any) -> jax.stages.Traced:
        """A step after the warm-up as a program; all arguments may be abstract."""
        return type(self)._step.trace(
            self, state, self._frozen, batch, key, warm_up=False, places=sharding.places(state)
        )

    def count_flops(self, state: TrainState, batch: dict[str, Any], key: Any) -> float:
        return flops.count(self.trace(state, batch, key).jaxpr)

    @functools.partial(
        jax.jit, static_argnums=0, static_argnames=("warm_up", "places"), donate_argnums=1
    )
    def _step(
        self,
        state: TrainState,
        frozen: Any,
        batch: Batch,
        key: jax.Array,
        warm_up: bool,
        places: tuple[Any, ...],
    ) -> tuple[TrainState, dict[str, Array]]:
        def loss_fn(trained, batch, key):
            images = batch["image"]
            variables = {**state.ema, "params": trained["tokenizer"]}
            output = self.tokenizer.apply(variables, images, warm_up)
            terms = {
                "l1": jnp.mean(jnp.abs(output.images - images)),
                "quantization": output.quantized.loss,
            }
            if self._lpips:
                distance = self._lpips.apply(frozen["lpips"], output.images, images)
                terms["lpips"] = jnp.mean(distance)
            discriminator_loss, judged = 0.0, {}
            if self._adversary:
                terms["adversarial"], discriminator_loss, judged = self._adversary.losses(
                    trained["discriminator"],
                    state.adversary,
                    frozen["dino"],
                    images,
                    output.images,
                    key,
                )
                terms["discriminator"] = discriminator_loss
            loss = sum(weight * terms[name] for name, weight in self._weights.items())
            canvases = output.quantized.canvases
            errors = jnp.mean((canvases[:, 1:] - canvases[:, -1:]) ** 2, axis=(0, 2, 3))
            metrics = {
                "loss": loss,
                **terms,
                "canvas_error_by_stage": errors,
                "token_counts": token_counts(output.quantized.tokens, self.tokenizer.vocab_size),
            }
            # One backward pass: neither loss has a gradient for the other side's parameters.
            return loss + discriminator_loss, (metrics, judged)

        trained = {"tokenizer": state.params}
        if self._adversary:
            trained["discriminator"] = state.adversary.params
        grads, (metrics, judged) = accumulation.gradients(
            loss_fn, trained, {"image": batch["image"]}, key, self._microbatches
        )
        metrics["gradient_norm"] = optax.tree.norm(grads["tokenizer"])
        new_state = state.update(grads["tokenizer"], self._optimizer, self._ema_decay)
        if self._adversary:
            metrics["real_logit"], metrics["fake_logit"] = judged["logits"]
            adversary = self._adversary.update(state.adversary, grads["discriminator"], judged)
            new_state = new_state.replace(adversary=adversary)
        return sharding.keep(new_state, places), metrics

    def pictures(self, state: TrainState, batch: Batch) -> dict[str, np.ndarray]:
        """The strip of a few reconstructions beside their originals, as uint8."""
        images = batch["image"][:4]
        return {"reconstructions": reconstruction_strips(self.tokenizer, state.ema, images)}


def reconstruction_strips(
    tokenizer: Tokenizer, variables: Any, images: Float[Array, "B H W 3"]
) -> np.ndarray:
    """Coarse-to-fine strips of images, each with its original, as one uint8 picture."""
    sequence, _ = tokenize(tokenizer, variables, images)
    stage_images = decode_stages(tokenizer, variables, sequence)
    stage_images, structure, images = sharding.on_host((stage_images, sequence.structure, images))
    return visualize.strips(
        pixels.to_uint8(stage_images), structure, tokenizer.grid, pixels.to_uint8(images)
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
