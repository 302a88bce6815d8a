"""The structure generator: a rectified flow over the structure embedding (paper, Sec. 3.3).

The network, the law of its times, its loss and the solver. Another way to generate structure is
another file with a module of the same public methods, and a name in `model.STRUCTURE_GENERATORS`.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Key

from nvg_jax import granularity, keys
from nvg_jax.generator.rope import rope_ids, with_class_token
from nvg_jax.generator.sizes import Sizes
from nvg_jax.generator.transformer import (
    Head,
    Stack,
    dense,
    embed,
)
from nvg_jax.granularity import GranularitySequence

Params = Any

CANVAS_ROLE = 2


class StructureFlow(nn.Module):
    """Predicts the velocity of the structure channels from the canvas after a stage.

    Time runs from 1, noise, to 0, the structure embedding in [-1, 1]. Channels below the stage are
    known: they hold the structure at all times. `loss`, `noise` and `scores` are what trains and
    samples it; what is not marked `nowrap` is the network itself.
    """

    sizes: Sizes

    @nn.compact
    def __call__(
        self,
        noisy: Float[Array, "B L K"],
        canvas: Float[Array, "B L C"],
        structure: Int[Array, "B L"],
        stage: Int[Array, "B"],
        time: Float[Array, "B"],
        class_id: Int[Array, "B"],
        deterministic: bool = True,
    ) -> Float[Array, "B L K"]:
        """The velocity `eps - x` at flow time `time` in [0, 1].

        noisy: the flow's state. canvas: painted by the stages up to and including `stage`.
        structure: only the top `stage` bits count. Random keys: `drop_path`, unless deterministic.
        """
        sizes, stack = self.sizes, self.sizes.structure
        length, num_bits = noisy.shape[1:]
        class_token = embed(sizes.num_classes + 1, stack.width, "class_embed")(class_id)
        vector = class_token + embed(num_bits - 1, stack.width, "stage_embed")(stage)
        hidden = dense(stack.width, jnp.float32, "time_embed_in", (None, "hidden"))(
            time_features(time)
        )
        vector += dense(stack.width, jnp.float32, "time_embed_out", ("hidden", "embed"))(
            nn.silu(hidden)
        )
        x = jnp.concatenate(
            [
                class_token[:, None].astype(stack.dtype),
                dense(stack.width, stack.dtype, "canvas_embed")(canvas),
                dense(stack.width, stack.dtype, "structure_embed")(noisy),
            ],
            axis=1,
        )
        known = stage if sizes.structure_rope else jnp.zeros_like(stage)
        bits = granularity.structure_embedding(structure, known)
        canvas_ids = rope_ids(bits, sizes.grid, CANVAS_ROLE)
        ids = jnp.concatenate([canvas_ids, rope_ids(bits, sizes.grid)], axis=1)
        x = Stack(stack, name="stack")(x, vector, with_class_token(ids), deterministic)
        return Head(num_bits, stack.dtype, name="head")(x[:, 1 + length :], vector)

    @nn.nowrap
    def init_params(self, key: Key[Array, ""]) -> Params:
        sizes = self.sizes
        canvas = jnp.zeros((1, sizes.num_positions, sizes.latent_channels))
        noisy = jnp.zeros((1, sizes.num_positions, sizes.last_stage))
        structure = jnp.zeros((1, sizes.num_positions), jnp.int32)
        zero = jnp.zeros((1,), jnp.int32)
        return self.init(key, noisy, canvas, structure, zero, jnp.zeros((1,)), zero)["params"]

    @nn.nowrap
    def noise(self, image_keys: Key[Array, "B"]) -> Float[Array, "B L K"]:
        """Each image's structure noise, which all its stages share."""
        shape = (self.sizes.num_positions, self.sizes.last_stage)
        return keys.normal(image_keys, "structure noise", shape)

    @nn.nowrap
    def times(self, image_keys: Key[Array, "B"]) -> Float[Array, "B splits"]:
        """Training's flow time of each image and stage, logistic-normal."""
        shape = (self.sizes.last_stage - 1,)
        return jax.nn.sigmoid(keys.normal(image_keys, "flow time", shape))

    @nn.nowrap
    def loss(
        self,
        params: Params,
        sequence: GranularitySequence,
        canvases: Float[Array, "B canvases L C"],
        class_id: Int[Array, "B"],
        image_keys: Key[Array, "B"] | None,
        drop_path_key: Key[Array, ""] | None = None,
        noise: Float[Array, "B L K"] | None = None,
        time: Float[Array, "B splits"] | None = None,
        stage_stride: int = 1,
    ) -> Float[Array, "splits"]:
        """Error of the predicted structure at stages 0..K-2, from the true canvas after each.

        The noise and the times of an image are drawn with its key, unless they are given.
        drop_path_key: when training. stage_stride: as in `granularity.shared_out`.
        """
        noise = self.noise(image_keys) if noise is None else noise
        time = self.times(image_keys) if time is None else time
        last_stage = self.sizes.last_stage
        stages = range(last_stage - 1)

        def at_all(array: Array) -> Array:
            return granularity.shared_out([array] * len(stages), stage_stride)

        structure = at_all(sequence.structure)
        x = at_all(_embedding(sequence.structure, last_stage))
        # On known channels noise and data agree at all times.
        noise = jnp.where(self._known(jnp.arange(len(stages)))[:, None], x, at_all(noise))
        time = granularity.shared_out([time[:, k] for k in stages], stage_stride)
        t = time[..., None, None]
        inputs = [canvases[:, k + 1] for k in stages]
        flat = granularity.flat
        velocity = self.apply(
            {"params": params},
            flat(t * noise + (1.0 - t) * x),
            flat(granularity.shared_out(inputs, stage_stride)),
            flat(structure),
            jnp.tile(jnp.arange(len(stages)), structure.shape[0]),
            flat(time),
            flat(at_all(class_id)),
            deterministic=drop_path_key is None,
            rngs=None if drop_path_key is None else {"drop_path": drop_path_key},
        )
        predicted = noise - rearrange(velocity, "(b s) l k -> b s l k", s=len(stages))
        return jnp.mean((predicted - x) ** 2, axis=(0, 2, 3))

    @nn.nowrap
    def scores(
        self,
        params: Params,
        canvas: Float[Array, "B L C"],
        structure: Int[Array, "B L"],
        stage: Int[Array, ""],
        class_id: Int[Array, "B"],
        noise: Float[Array, "B L K"],
        guidance: Float[Array, ""] | None,
        num_steps: int,
    ) -> Float[Array, "B L K"]:
        """How much each position belongs to the upper half of its cluster, in about [-1, 1].

        Channel `stage` is what this stage's split needs; those after it look ahead to the splits of
        later stages, before their content is known. By Euler steps from noise to structure.
        guidance: moves the velocity away from that of no class; None leaves it, in half the time.
        """
        known, bits = self._known(stage), _embedding(structure, stage)
        times = jnp.asarray(flow_times(num_steps, self.sizes.num_positions), jnp.float32)
        classes = [class_id]
        if guidance is not None:
            classes.append(jnp.full_like(class_id, self.sizes.num_classes))
        classes = jnp.concatenate(classes)
        passes = len(classes) // len(class_id)

        def each(x: Array) -> Array:
            return jnp.concatenate([x] * passes)

        def euler(state: Array, interval: tuple[Array, Array]) -> tuple[Array, None]:
            time, next_time = interval
            velocity = self.apply(
                {"params": params},
                each(state),
                each(canvas),
                each(structure),
                jnp.full_like(classes, stage),
                jnp.full(classes.shape, time),
                classes,
            )
            if guidance is not None:
                velocity, without = jnp.split(velocity, 2)
                velocity = without + guidance * (velocity - without)
            state += (next_time - time) * velocity
            return jnp.where(known, bits, state), None

        start = jnp.where(known, bits, noise)
        state, _ = jax.lax.scan(euler, start, (times[:-1], times[1:]))
        return state

    @nn.nowrap
    def _known(self, stage: Int[Array, "*stages"]) -> Bool[Array, "*stages K"]:
        """Which channels are known at a stage."""
        known = jnp.arange(self.sizes.last_stage) < stage[..., None]
        return known & self.sizes.known_structure


def _embedding(structure: Int[Array, "B L"], stage: int | Int[Array, ""]) -> Float[Array, "B L K"]:
    """The structure embedding of a stage in [-1, 1]; 0 where it is not decided."""
    return granularity.structure_embedding(structure, stage) - 1.0


def time_features(time: Float[Array, "B"], num_features: int = 64) -> Float[Array, "B F"]:
    """Sinusoidal features of 1000 t, cosines first."""
    half = num_features // 2
    frequency = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / half)
    angle = 1000.0 * time[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def flow_times(num_steps: int, num_positions: int) -> Float[np.ndarray, "steps"]:
    """The `num_steps + 1` flow times from 1 to 0, shifted towards noise for longer sequences."""
    shift = math.exp(0.5 + 0.65 * (num_positions - 256) / 3840)
    t = np.linspace(1.0, 0.0, num_steps + 1)
    return shift * t / (shift * t + 1.0 - t)
