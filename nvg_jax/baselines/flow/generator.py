"""The generator of the flow: a transformer over the latent's positions, its loss and its solver."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from nvg_jax import keys
from nvg_jax.baselines.flow.tokenizer import Autoencoder, build_autoencoder
from nvg_jax.baselines.one_stack import OneStackGenerator, OneStackSizes
from nvg_jax.generator.guidance import guide, with_no_class
from nvg_jax.generator.model import stack_sizes
from nvg_jax.generator.numbers import embed_number, number_layers
from nvg_jax.generator.rope import rope_ids
from nvg_jax.generator.settings import Settings, ramp
from nvg_jax.generator.training import GeneratorTask
from nvg_jax.generator.transformer import Head, Stack, dense, dropping, embed, embedding_init
from nvg_jax.granularity import GranularitySequence
from nvg_jax.sharding import split_batch
from nvg_jax.tokenizer.model import canvas_scales
from nvg_jax.training.loop import Batch, Metrics

Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class FlowSizes(OneStackSizes):
    """A generator over the positions of one autoencoder."""

    @property
    def num_positions(self) -> int:
        return self.grid[0] * self.grid[1]


class LatentFlow(nn.Module):
    """Predicts the velocity of the latent, of unit variance, from the class and the flow's time.

    Time runs from 1, noise, to 0, the latent.
    """

    sizes: FlowSizes

    @nn.compact
    def __call__(
        self,
        noisy: Float[Array, "B L C"],
        time: Float[Array, "B"],
        class_id: Int[Array, "B"],
        deterministic: bool = True,
    ) -> Float[Array, "B L C"]:
        """The velocity `noise - latent` at flow time `time`.

        Random keys: `drop_path`, unless deterministic.
        """
        sizes, stack = self.sizes, self.sizes.stack
        vector = embed(sizes.num_classes + 1, stack.width, "class_embed")(class_id)
        vector += embed_number(time, *number_layers(stack.width, "time_embed"), fastest=1000.0)
        place = self.param("place_embed", embedding_init, (sizes.num_positions, stack.width))
        x = dense(stack.width, stack.dtype, "latent_embed")(noisy) + place.astype(stack.dtype)
        ids = rope_ids(jnp.zeros((*x.shape[:2], 0)), sizes.grid)
        x = Stack(stack, name="stack")(x, vector, ids, deterministic)
        return Head(sizes.latent_channels, stack.dtype, name="head")(x, vector)


@dataclasses.dataclass(frozen=True)
class FlowGenerator(OneStackGenerator):
    """The network over the positions of one autoencoder."""

    sizes: FlowSizes

    @property
    def network(self) -> LatentFlow:
        return LatentFlow(self.sizes)

    @property
    def architecture(self) -> str:
        """What a checkpoint has to agree with, in one line."""
        sizes, stack = self.sizes, self.sizes.stack
        return (
            f"latent flow(depth {stack.depth}, {stack.width} x {stack.num_heads} heads, "
            f"{sizes.num_positions} positions x {sizes.latent_channels}, {sizes.num_classes} "
            "classes)"
        )

    def init_variables(self, key: Key[Array, ""]) -> Variables:
        """Random parameters to train from."""
        latent = jnp.zeros((1, self.sizes.num_positions, self.sizes.latent_channels))
        made = self.network.init(key, latent, jnp.ones((1,)), jnp.zeros((1,), jnp.int32))
        return {"params": {"flow": made["params"]}}

    def noise(self, image_keys: Key[Array, "B"]) -> Float[Array, "B L C"]:
        """Where each image's flow begins."""
        shape = (self.sizes.num_positions, self.sizes.latent_channels)
        return keys.normal(image_keys, "latent noise", shape)

    def loss(
        self,
        params: Any,
        latent: Float[Array, "B L C"],
        class_id: Int[Array, "B"],
        image_keys: Key[Array, "B"],
        drop_path_key: Key[Array, ""] | None = None,
    ) -> Float[Array, ""]:
        """Mean square error of the velocity on the straight way from noise to latents.

        latent: of unit variance. Times are logit-normal, drawn with the noise by the images' keys.
        """
        time = jax.nn.sigmoid(keys.normal(image_keys, "latent time", ()))
        noise, t = self.noise(image_keys), time[:, None, None]
        noisy = t * noise + (1.0 - t) * latent
        dropped = dropping(drop_path_key)
        velocity = self.network.apply({"params": params["flow"]}, noisy, time, class_id, **dropped)
        return jnp.mean((velocity - (noise - latent)) ** 2)


def solve(
    velocity: Callable[[Array, Array, Array], Array],
    noise: Float[Array, "B L C"],
    guidances: Float[np.ndarray, "steps"],
) -> Float[Array, "B L C"]:
    """Goes from noise to latents in equal Euler steps, one with each guidance.

    velocity: of the state at a time, with a guidance.
    """
    size = 1.0 / len(guidances)
    times = np.linspace(1.0, size, len(guidances))

    def step(state: Array, given: tuple[Array, Array]) -> tuple[Array, None]:
        return state - size * velocity(state, *given), None

    return jax.lax.scan(step, noise, (jnp.float32(times), jnp.float32(guidances)))[0]


@functools.partial(jax.jit, static_argnames=("tokenizer", "generator", "settings"))
def sample(
    tokenizer: Autoencoder,
    generator: FlowGenerator,
    settings: Settings,
    tokenizer_variables: Variables,
    generator_variables: Variables,
    class_id: Int[Array, "B"],
    image_keys: Key[Array, "B"],
) -> GranularitySequence:
    """Generates one latent for each class id, which depends on that and on its key alone.

    Of the settings it heeds `flow_steps` and `content_guidance`, which is linear over the steps.
    """
    last = settings.flow_steps - 1
    guidances = [ramp(settings.content_guidance, step, last) for step in range(last + 1)]
    passes = 1 if set(guidances) == {1.0} else 2
    classes = with_no_class(class_id, generator.sizes.num_classes, passes)
    params = {"params": generator_variables["params"]["flow"]}

    def velocity(state: Array, time: Array, guidance: Array) -> Array:
        states = jnp.concatenate([state] * passes)
        found = generator.network.apply(params, states, jnp.full(len(classes), time), classes)
        return guide(jnp.split(found, passes), guidance)

    latent = solve(velocity, split_batch(generator.noise(image_keys)), np.array(guidances))
    return GranularitySequence(None, latent / canvas_scales(tokenizer_variables)[-1])


class FlowTask(GeneratorTask):
    """The loop's task: the error of the velocity."""

    sample = staticmethod(sample)

    def loss(
        self, frozen: Any, params: Any, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        sequence, _ = self._tokenized(frozen["tokenizer"], batch)
        loss = self.generator.loss(
            params,
            sequence.tokens * canvas_scales(frozen["tokenizer"])[-1],
            self._some_dropped(batch["label"], batch["key"]),
            batch["key"],
            keys.named(key, "flow"),
        )
        counts = self._token_counts(sequence)
        return loss, {"loss": loss, "loss/velocity": loss, "token_counts": counts}


def build_flow_generator(config: ConfigDict) -> FlowGenerator:
    """The generator of a whole run's config, as wide and deep as its content model.

    UserError if a value is not allowed, or its sizes do not fit together.
    """
    tokenizer = build_autoencoder(config)
    return FlowGenerator(
        FlowSizes(
            stack=stack_sizes(config, "content", 0),
            grid=tokenizer.grid,
            latent_channels=tokenizer.latent_channels,
            num_classes=config.data.num_classes,
        )
    )
