"""A structure generator for few steps: velocities that are means over time (Geng et al., 2025).

The mean flow of https://arxiv.org/abs/2505.13447 with guidance as an input of the network, drawn in
training, so that sampling makes no pass without the class (https://arxiv.org/abs/2512.02012).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from nvg_jax import keys
from nvg_jax.generator.structure import Params, StructureFlow
from nvg_jax.generator.transformer import dropping
from nvg_jax.granularity import GranularitySequence

MAX_GUIDANCE = 4.0


class MeanFlow(StructureFlow):
    """Predicts the mean velocity of the structure channels from a time down to an earlier one.

    Its network is that of the flow, whose velocity is the mean over no time at all without
    guidance: the embeddings of `start`, the time from which, of `interval`, how long, and of
    `guidance` in [1, MAX_GUIDANCE] start at zero, so that training may go on from a flow. What the
    flow takes as its time is the interval's end, which stays while the mean changes with the start:
    that embedding is too fast to be differentiated.
    """

    MORE: ClassVar[tuple[str, ...]] = ("start", "interval", "guidance")

    @nn.nowrap
    def times(self, image_keys: Key[Array, "B"]) -> Float[Array, "B splits 2"]:
        """Training's intervals of each image and stage, as their ends and their starts.

        Logistic-normal; half of them are of no length, and none ends after its start.
        """
        splits = len(self.sizes.splits)
        drawn = jax.nn.sigmoid(keys.normal(image_keys, "flow time", (splits, 2)) - 0.4)
        start, end = jnp.max(drawn, axis=-1), jnp.min(drawn, axis=-1)
        is_point = keys.normal(image_keys, "no interval", (splits,)) > 0
        return jnp.stack([jnp.where(is_point, start, end), start], axis=-1)

    @nn.nowrap
    def loss(
        self,
        params: Params,
        sequence: GranularitySequence,
        canvases: Float[Array, "B canvases L C"],
        class_id: Int[Array, "B"],
        image_keys: Key[Array, "B"],
        drop_path_key: Key[Array, ""] | None = None,
        stage_stride: int = 1,
    ) -> Float[Array, "splits"]:
        """Error of the mean velocity at `sizes.splits`, from the true canvas after each.

        The value is the mean square; its gradient is that of the mean square of each example over
        itself, held constant. Arguments as of `StructureFlow.loss`.
        """
        noise, times = self.noise(image_keys), self.times(image_keys)
        splits = len(self.sizes.splits)
        examples = self.examples(sequence, canvases, class_id, noise, stage_stride)
        times, share = (
            self.at_stages(jnp.unstack(x, axis=1), stage_stride)
            for x in (times, keys.uniform(image_keys, "guidance", (splits,)))
        )
        (end, start), inputs = times.T, examples.inputs
        has_class = inputs["class_id"] < self.sizes.num_classes
        guidance = jnp.where(has_class, 1.0 + (MAX_GUIDANCE - 1.0) * share, 1.0)
        # Fused attention has no forward derivative.
        stack = dataclasses.replace(self.sizes.structure, attention="xla")
        network = self.clone(sizes=dataclasses.replace(self.sizes, structure=stack))

        def mean_velocity(state: Array, start: Array, interval: Array) -> Array:
            more = {"start": start, "interval": interval, "guidance": _scaled(guidance)}
            arguments = inputs | dropping(drop_path_key)
            return network.apply({"params": params}, state, time=end, more=more, **arguments)

        def velocity(state: Array, class_id: Int[Array, "N"]) -> Array:
            """At a point, without guidance."""
            none = jnp.zeros_like(start)
            arguments = inputs | {"class_id": class_id, "time": start}
            arguments["more"] = {"start": start, "interval": none, "guidance": none}
            return jax.lax.stop_gradient(network.apply({"params": params}, state, **arguments))

        t, scale = start[:, None, None], guidance[:, None, None]
        bits = examples.structure_bits
        state = t * examples.noise + (1.0 - t) * bits
        # What the network itself says of the class varies less than the example's own velocity.
        no_class = jnp.full_like(inputs["class_id"], self.sizes.num_classes)
        of_class = velocity(state, inputs["class_id"]) - velocity(state, no_class)
        guided = examples.noise - bits + (scale - 1.0) * of_class
        guided = jnp.where(self._known(inputs["stage"])[:, None], 0.0, guided)
        interval, one = start - end, jnp.ones_like(start)
        mean, change = jax.jvp(mean_velocity, (state, start, interval), (guided, one, one))
        target = jax.lax.stop_gradient(guided - interval[:, None, None] * change)
        error = jnp.mean((mean - target) ** 2, axis=(1, 2))
        of_itself = error / jax.lax.stop_gradient(error + 0.01)
        return self.by_stage(jax.lax.stop_gradient(error - of_itself) + of_itself)

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
        """As of `StructureFlow`, in one pass a step. guidance: at most MAX_GUIDANCE."""
        guidance = jnp.float32(1) if guidance is None else guidance

        def of_all(number: Array) -> Array:
            return jnp.full(class_id.shape, number)

        def velocity(state: Array, time: Array, next_time: Array) -> Array:
            more = {"start": time, "interval": time - next_time, "guidance": _scaled(guidance)}
            return self.apply(
                {"params": params},
                state,
                canvas,
                structure,
                of_all(stage),
                of_all(next_time),
                class_id,
                more=jax.tree.map(of_all, more),
            )

        return self.solve(velocity, structure, stage, noise, num_steps, held)


def _scaled(guidance: Float[Array, "..."]) -> Float[Array, "..."]:
    """In [0, 1] for the network; none is 0."""
    return (guidance - 1.0) / (MAX_GUIDANCE - 1.0)
