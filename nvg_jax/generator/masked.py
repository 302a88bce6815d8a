"""A structure generator for few rounds: the bits of a split, masked and predicted.

As images are made of masked tokens (https://arxiv.org/abs/2202.04200), but that the clusters stay
balanced in every round.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from nvg_jax import granularity, keys
from nvg_jax.generator.structure import Params, StructureFlow, embedding
from nvg_jax.generator.transformer import dropping
from nvg_jax.granularity import GranularitySequence

_LOGISTIC = 1.7  # A normal number times this is nearly a logistic one.


class MaskedBits(StructureFlow):
    """Predicts logits of the bits that a stage decides, given those of some positions.

    Its network is that of the flow. Of the channels it is shown what is known at the stage, and in
    that of the stage itself 1 or -1 for a bit, 0 where it is masked; the share of masked positions
    stands for the time. It looks no further ahead, and so has to run at every stage.
    """

    @nn.nowrap
    def times(self, image_keys: Key[Array, "B"]) -> Float[Array, "B splits"]:
        """Training's expected share of masked positions of each image and stage."""
        return jnp.cos(
            0.5 * jnp.pi * keys.uniform(image_keys, "masked", (self.sizes.last_stage - 1,))
        )

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
        """Cross-entropy of the masked bits at stages 0..K-2, from the true canvas after each.

        Arguments as of `StructureFlow.loss`.
        """
        shape = (self.sizes.last_stage - 1, self.sizes.num_positions)
        masked = keys.uniform(image_keys, "mask", shape) < self.times(image_keys)[..., None]
        masked = self.at_stages(jnp.unstack(masked, axis=1), stage_stride)
        noise = self.noise(image_keys)
        examples = self.examples(sequence, canvases, class_id, noise, stage_stride)
        structure, stage = (examples.inputs[name] for name in ("structure", "stage"))
        bits = _at_channel(examples.structure_bits, stage)
        predicted = self.apply(
            {"params": params},
            _shown(structure, stage, jnp.where(masked, 0.0, bits)),
            time=jnp.mean(masked, axis=1),
            **examples.inputs,
            **dropping(drop_path_key),
        )
        logits = _at_channel(predicted, stage)
        errors = optax.sigmoid_binary_cross_entropy(logits, (bits + 1.0) / 2.0)
        count = jnp.maximum(jnp.sum(masked, axis=1), 1)
        return self.by_stage(jnp.sum(errors * masked, axis=1) / count)

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
        """1 or -1 in channel `stage`, as many of both in each cluster; 0 in the others.

        Bits are drawn in `num_steps` rounds, of which each keeps the surest, as many 1 as -1 in
        every cluster, and shows them to the next. Arguments as of `StructureFlow.scores`.
        """
        num_bits = noise.shape[-1]
        labels, clusters = granularity.labels_at(structure, stage), 1 << stage
        half = structure.shape[-1] // (2 * clusters)
        predict = self.guided(params, canvas, structure, stage, class_id, guidance)
        of_held = jnp.zeros(structure.shape) if held is None else held[..., stage]
        bits = of_held
        for number in range(1, num_steps + 1):
            is_free = bits == 0
            logits = predict(_shown(structure, stage, bits), jnp.mean(is_free, axis=1))[..., stage]
            drawn = logits + _LOGISTIC * noise[..., (stage + number - 1) % num_bits]
            value = jnp.where(is_free, drawn, bits * jnp.inf)
            rank = granularity.rank_in_cluster(value, labels, clusters)
            decided = half - jnp.int32(half * math.cos(0.5 * math.pi * number / num_steps))
            bits = (rank < decided).astype(jnp.float32) - (rank >= 2 * half - decided)
            bits = jnp.where(of_held == 0, bits, of_held)
        return bits[..., None] * jax.nn.one_hot(stage, num_bits)


def _at_channel(x: Float[Array, "N L K"], stage: Int[Array, "N"]) -> Float[Array, "N L"]:
    return jnp.take_along_axis(x, stage[:, None, None], axis=-1)[..., 0]


def _shown(
    structure: Int[Array, "N L"], stage: Int[Array, "*N"], bits: Float[Array, "N L"]
) -> Float[Array, "N L K"]:
    """The structure embedding of a stage, in [-1, 1], with the bits in the channel that follows."""
    known = embedding(structure, stage)
    channel = jax.nn.one_hot(stage, known.shape[-1])
    return known + bits[..., None] * jnp.expand_dims(channel, -2)
