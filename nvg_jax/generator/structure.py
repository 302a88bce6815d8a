"""The structure generator: a rectified flow over the structure embedding (paper, Sec. 3.3).

The network, the law of its times, its loss and the solver. Another way to generate structure is
another file with a module of the same public methods, and a name in `model.STRUCTURE_GENERATORS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Key

from nvg_jax import granularity, keys
from nvg_jax.generator.guidance import guide, with_no_class
from nvg_jax.generator.numbers import SMOOTH, embed_number, number_layers
from nvg_jax.generator.rope import rope_ids, with_class_token
from nvg_jax.generator.sizes import Sizes
from nvg_jax.generator.transformer import Head, Stack, dense, dropping, embed
from nvg_jax.granularity import GranularitySequence, Stage

Params = Any

CANVAS_ROLE = 2


class Examples(NamedTuple):
    """What a structure generator is trained on: N images, each at a stage, as they lie in a batch.

    noise, structure_bits: the ends of the flow, of which known channels are the same.
    inputs: of the network, but for the state of the flow and its time.
    """

    noise: Float[Array, "N L K"]
    structure_bits: Float[Array, "N L K"]
    inputs: dict[str, Array]


class StructureFlow(nn.Module):
    """Predicts the velocity of the structure channels from the canvas after a stage.

    Time runs from 1, noise, to 0, the structure embedding in [-1, 1]. Channels below the stage are
    known: they hold the structure at all times. `loss`, `noise` and `scores` are what trains and
    samples it; what is not marked `nowrap` is the network itself.
    """

    # Names of the further numbers that the network takes.
    MORE: ClassVar[tuple[str, ...]] = ()

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
        more: Mapping[str, Float[Array, "B"]] | None = None,
    ) -> Float[Array, "B L K"]:
        """The velocity `eps - x` at flow time `time` in [0, 1].

        noisy: the flow's state. canvas: painted by the stages up to and including `stage`.
        structure: only the top `stage` bits count. Random keys: `drop_path`, unless deterministic.
        more: further numbers to heed, by name. Their embeddings are like that of time, but smooth,
        and they start at zero: a trained network that gets them does as before.
        """
        sizes, stack = self.sizes, self.sizes.structure
        length, num_bits = noisy.shape[1:]
        class_token = embed(sizes.num_classes + 1, stack.width, "class_embed")(class_id)
        vector = class_token + embed(num_bits - 1, stack.width, "stage_embed")(stage)
        vector += embed_number(time, *number_layers(stack.width, "time_embed"), fastest=1000.0)
        for name, number in (more or {}).items():
            layers = number_layers(stack.width, f"{name}_embed", nn.initializers.zeros)
            vector += embed_number(number, *layers, fastest=SMOOTH)
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
        more = {name: jnp.zeros((1,)) for name in self.MORE}
        inputs = (noisy, canvas, structure, zero, jnp.zeros((1,)), zero)
        return self.init(key, *inputs, more=more)["params"]

    @nn.nowrap
    def noise(self, image_keys: Key[Array, "B"]) -> Float[Array, "B L K"]:
        """Each image's structure noise, which all its stages share."""
        shape = (self.sizes.num_positions, self.sizes.last_stage)
        return keys.normal(image_keys, "structure noise", shape)

    @nn.nowrap
    def times(self, image_keys: Key[Array, "B"]) -> Float[Array, "B splits"]:
        """Training's flow time of each image and stage, logistic-normal."""
        shape = (len(self.sizes.splits),)
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
        """Error of the predicted structure at `sizes.splits`, from the true canvas after each.

        The noise and the times of an image are drawn with its key, unless they are given.
        drop_path_key: when training. stage_stride: as in `granularity.shared_out`.
        """
        noise = self.noise(image_keys) if noise is None else noise
        time = self.times(image_keys) if time is None else time
        examples = self.examples(sequence, canvases, class_id, noise, stage_stride)
        time = self.at_stages(jnp.unstack(time, axis=1), stage_stride)
        t = time[:, None, None]
        velocity = self.apply(
            {"params": params},
            t * examples.noise + (1.0 - t) * examples.structure_bits,
            time=time,
            **examples.inputs,
            **dropping(drop_path_key),
        )
        error = examples.noise - velocity - examples.structure_bits
        return self.by_stage(jnp.mean(error**2, axis=(1, 2)))

    @nn.nowrap
    def examples(
        self,
        sequence: GranularitySequence,
        canvases: Float[Array, "B canvases L C"],
        class_id: Int[Array, "B"],
        noise: Float[Array, "B L K"],
        stage_stride: int,
    ) -> Examples:
        """What images are trained on, given as to `loss`."""
        splits = self.sizes.splits

        def at_all(array: Array) -> Array:
            return self.at_stages([array] * len(splits), stage_stride)

        structure = at_all(sequence.structure)
        stage = jnp.tile(jnp.asarray(list(splits)), len(structure) // len(splits))
        bits = embedding(structure, self.sizes.last_stage)
        # On known channels noise and data agree at all times.
        noise = jnp.where(self._known(stage)[:, None], bits, at_all(noise))
        inputs = {
            "canvas": self.at_stages([canvases[:, k] for k in splits.values()], stage_stride),
            "structure": structure,
            "stage": stage,
            "class_id": at_all(class_id),
        }
        return Examples(noise, bits, inputs)

    @nn.nowrap
    def at_stages(self, arrays: Sequence[Array], stage_stride: int) -> Array:
        """Of the examples, from what the batch has at each stage, `[B, ...]`."""
        return granularity.flat(granularity.shared_out(arrays, stage_stride))

    @nn.nowrap
    def by_stage(self, losses: Float[Array, "N"]) -> Float[Array, "splits"]:
        """The mean of the examples' losses at each stage."""
        return jnp.mean(rearrange(losses, "(g s) -> g s", s=len(self.sizes.splits)), axis=0)

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
        held: Float[Array, "B L K"] | None = None,
    ) -> Float[Array, "B L K"]:
        """How much each position belongs to the upper half of its cluster, in about [-1, 1].

        Channel `stage` is what this stage's split needs; those after it look ahead to the splits of
        later stages, before their content is known. By Euler steps from noise to structure.
        guidance: moves the velocity away from that of no class; None leaves it, in half the time.
        held: the structure embedding where it is to stay as it is, and 0 elsewhere.
        """
        predict = self.guided(params, canvas, structure, stage, class_id, guidance)

        def velocity(state: Array, time: Array, _: Array) -> Array:
            return predict(state, jnp.full(class_id.shape, time))

        return self.solve(velocity, structure, stage, noise, num_steps, held)

    @nn.nowrap
    def guided(
        self,
        params: Params,
        canvas: Float[Array, "B L C"],
        structure: Int[Array, "B L"],
        stage: Int[Array, ""],
        class_id: Int[Array, "B"],
        guidance: Float[Array, ""] | None,
    ) -> Callable[[Float[Array, "B L K"], Float[Array, "B"]], Float[Array, "B L K"]]:
        """What the network says of a state and its times, moved away from what it says of no class.

        guidance: how far; None leaves it, in one pass of the network instead of two.
        """
        passes = 1 if guidance is None else 2
        classes = with_no_class(class_id, self.sizes.num_classes, passes)

        def each(x: Array) -> Array:
            return jnp.concatenate([x] * passes)

        def predict(state: Array, time: Array) -> Array:
            found = self.apply(
                {"params": params},
                each(state),
                each(canvas),
                each(structure),
                jnp.full_like(classes, stage),
                each(time),
                classes,
            )
            return guide(jnp.split(found, passes), guidance)

        return predict

    @nn.nowrap
    def solve(
        self,
        velocity: Callable[[Array, Array, Array], Array],
        structure: Int[Array, "B L"],
        stage: Int[Array, ""],
        noise: Float[Array, "B L K"],
        num_steps: int,
        held: Float[Array, "B L K"] | None = None,
    ) -> Float[Array, "B L K"]:
        """Goes from noise to structure, holding the channels that are known, and what is held.

        velocity: of the state at a time, on the way from there to a next time.
        held: as of `scores`; it is on the straight way from its noise.
        """
        known, bits = self._known(stage), embedding(structure, stage)
        times = jnp.asarray(flow_times(num_steps, self.sizes.num_positions), jnp.float32)

        def step(state: Array, interval: tuple[Array, Array]) -> tuple[Array, None]:
            time, next_time = interval
            state += (next_time - time) * velocity(state, time, next_time)
            if held is not None:
                on_the_way = next_time * noise + (1.0 - next_time) * held
                state = jnp.where(held == 0, state, on_the_way)
            return jnp.where(known, bits, state), None

        start = jnp.where(known, bits, noise)
        return jax.lax.scan(step, start, (times[:-1], times[1:]))[0]

    @nn.nowrap
    def _known(self, stage: Int[Array, "*stages"]) -> Bool[Array, "*stages K"]:
        """Which channels are known at a stage."""
        known = jnp.arange(self.sizes.last_stage) < stage[..., None]
        return known & self.sizes.known_structure


def embedding(structure: Int[Array, "B L"], stage: Stage) -> Float[Array, "B L K"]:
    """The structure embedding of a stage in [-1, 1]; 0 where it is not decided."""
    return granularity.structure_embedding(structure, stage) - 1.0


def flow_times(num_steps: int, num_positions: int) -> Float[np.ndarray, "steps"]:
    """The `num_steps + 1` flow times from 1 to 0, shifted towards noise for longer sequences."""
    shift = math.exp(0.5 + 0.65 * (num_positions - 256) / 3840)
    t = np.linspace(1.0, 0.0, num_steps + 1)
    return shift * t / (shift * t + 1.0 - t)
