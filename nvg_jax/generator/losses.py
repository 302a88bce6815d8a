"""The generator's losses on all stages of every image at once (paper, Sec. 3.3, Eq. 5-7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange, repeat
from jaxtyping import Array, Float, Int

from nvg_jax import granularity
from nvg_jax.generator.model import Generator
from nvg_jax.granularity import GranularitySequence

Variables = Any
Rngs = dict[str, jax.Array] | None


def _stages_of_each(array: Array, num_stages: int) -> Array:
    """Repeats a batch so that the stages of an image lie next to each other."""
    return repeat(array, "b ... -> (b s) ...", s=num_stages)


def content_losses(
    generator: Generator,
    variables: Variables,
    sequence: GranularitySequence,
    canvases: Float[Array, "B S L C"],
    class_id: Int[Array, "B"],
    canvas_scales: Float[Array, "S"],
    rngs: Rngs = None,
    canvas_noise: Float[Array, "B L C"] | None = None,
    align: Callable[[Float[Array, "B K1 L D"]], Float[Array, "K1"]] | None = None,
) -> dict[str, Float[Array, "K1"]]:
    """What guides the content model, at stages 0..K.

    `final`: error of the predicted final canvas, unless the model is without one; `content`:
    cross-entropy of the tokens; `repa`: what `align` gives for the tokens that the model taps.

    canvases: before each stage and after the last. rngs: with a `drop_path` key when training.
    canvas_noise: one per image, for a model with noised canvases.
    """
    stages = generator.last_stage + 1
    batch = class_id.shape[0]
    inputs = canvases[:, :stages]
    if canvas_noise is not None:
        canvas_noise = _stages_of_each(canvas_noise, stages)
    final_canvas, sown = generator.apply(
        variables,
        rearrange(inputs, "b s l c -> (b s) l c"),
        _stages_of_each(sequence.structure, stages),
        jnp.tile(jnp.arange(stages), batch),
        _stages_of_each(class_id, stages),
        canvas_scales,
        deterministic=rngs is None,
        noise=canvas_noise,
        method="predict_canvas",
        rngs=rngs,
        mutable=["intermediates"],
    )
    final_canvas = rearrange(final_canvas, "(b s) l c -> b s l c", s=stages)
    by_stage = {}
    if generator.final_canvas:
        by_stage["final"] = jnp.mean((final_canvas - canvases[:, -1:]) ** 2, axis=(0, 2, 3))
    content = []
    for stage in range(stages):
        logits = generator.apply(
            variables,
            final_canvas[:, stage],
            inputs[:, stage],
            granularity.labels_at(sequence.structure, stage),
            2**stage,
            method="token_logits",
        )
        tokens = granularity.stage_tokens(sequence.tokens, stage)
        content.append(jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens)))
    by_stage["content"] = jnp.stack(content)
    if align is not None:
        (tapped,) = sown["intermediates"]["content"]["stack"]["tapped"]
        image_tokens = rearrange(tapped[:, 1:], "(b s) l d -> b s l d", s=stages)
        by_stage["repa"] = align(image_tokens)
    return by_stage


def structure_losses(
    generator: Generator,
    variables: Variables,
    sequence: GranularitySequence,
    canvases: Float[Array, "B S L C"],
    class_id: Int[Array, "B"],
    noise: Float[Array, "B L K"],
    time: Float[Array, "B S1"],
    rngs: Rngs = None,
) -> Float[Array, "K1"]:
    """Error of the flow's prediction of the structure, at stages 0..K-2.

    noise: one per image, shared by its stages. time: flow time of each image and stage, in (0, 1).
    """
    stages = generator.last_stage - 1
    batch = class_id.shape[0]
    x = granularity.structure_embedding(sequence.structure, generator.last_stage) - 1.0
    x, noise = x[:, None], noise[:, None]
    known = jnp.arange(generator.last_stage) < jnp.arange(stages)[:, None, None]
    known &= generator.known_structure
    noise = jnp.where(known, x, noise)  # On known channels noise and data agree at all times.
    t = time[:, :, None, None]
    velocity = generator.apply(
        variables,
        rearrange(t * noise + (1.0 - t) * x, "b s l k -> (b s) l k"),
        rearrange(canvases[:, 1 : stages + 1], "b s l c -> (b s) l c"),
        _stages_of_each(sequence.structure, stages),
        jnp.tile(jnp.arange(stages), batch),
        time.reshape(-1),
        _stages_of_each(class_id, stages),
        deterministic=rngs is None,
        method="velocity",
        rngs=rngs,
    )
    predicted = noise - rearrange(velocity, "(b s) l k -> b s l k", s=stages)
    return jnp.mean((predicted - x) ** 2, axis=(0, 2, 3))
