"""The stage loop as one jitted function: content and structure in turn (paper, Sec. 3.3, 4.1)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from nvg_jax import granularity
from nvg_jax.generator.model import Generator
from nvg_jax.granularity import GranularitySequence
from nvg_jax.tokenizer.model import Tokenizer

Variables = Any


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample. Pairs are the values at the first and the last stage.

    content_guidance, structure_guidance: classifier-free guidance, linear over stages; 1 is none.
    temperature: of the tokens; 0 takes the most likely one.
    top_k: how many of the likeliest tokens to draw from; 0 is all.
    top_p: probability mass to draw from, falling as the geometric spacing of the stages grows.
    flow_steps: Euler steps of each structure map.
    gumbel_split: whether the halves of a split are drawn, instead of taking the top half.
    """

    content_guidance: tuple[float, float] = (1.0, 3.5)
    structure_guidance: tuple[float, float] = (1.0, 2.5)
    temperature: float = 1.0
    top_k: int = 0
    top_p: tuple[float, float] = (1.0, 0.5)
    flow_steps: int = 25
    gumbel_split: bool = False


class Given(NamedTuple):
    """What is not generated: the structure maps and the tokens of the first stages.

    sequence: holds them; what it has of later stages does not matter.
    structure_stages: how many stages, from 0 on, take their map from the sequence; 0..K + 1. (That
      of stage 0 is the same for all images.)
    content_stages: how many take their tokens from it, at most as many as their map, or 1.
    """

    sequence: GranularitySequence
    structure_stages: int | Int[Array, ""]
    content_stages: int | Int[Array, ""]


def given_structure(structure: Int[Array | np.ndarray, "B L"], stages: int) -> Given:
    """The structure of the first stages, from 0 on, and no content."""
    no_tokens = jnp.zeros((len(structure), 2 * structure.shape[1] - 1), jnp.int32)
    return Given(GranularitySequence(jnp.asarray(structure), no_tokens), stages, 0)


def nothing_given(batch: int, num_positions: int) -> Given:
    """Everything is generated."""
    return given_structure(jnp.zeros((batch, num_positions), jnp.int32), 0)


def top_p_schedule(top_p: tuple[float, float], last_stage: int) -> Float[np.ndarray, "S"]:
    """Top-p of each stage: from one value to the other as `a` goes geometrically from 1 to K."""
    a = np.geomspace(1.0, last_stage, last_stage + 1)
    return top_p[0] + (top_p[1] - top_p[0]) * (a - 1.0) / max(last_stage - 1, 1)


def flow_times(flow_steps: int, num_positions: int) -> Float[np.ndarray, "T"]:
    """The `flow_steps + 1` flow times from 1 to 0, shifted towards noise for longer sequences."""
    shift = math.exp(0.5 + 0.65 * (num_positions - 256) / 3840)
    t = np.linspace(1.0, 0.0, flow_steps + 1)
    return shift * t / (shift * t + 1.0 - t)


def truncate(
    logits: Float[Array, "B N V"], top_k: int, top_p: Float[Array, ""] | None
) -> Float[Array, "B N V"]:
    """Sets to -inf what is neither among the `top_k` nor within the likeliest mass `top_p`.

    The token that crosses `top_p` is kept. `top_k` 0 and `top_p` None mean no bound.
    """
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        descending = -jnp.sort(-logits, axis=-1)
        probability = jax.nn.softmax(descending, axis=-1)
        mass_before = jnp.cumsum(probability, axis=-1) - probability
        kept = (mass_before < top_p).at[..., 0].set(True)
        least = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def structure_noise(
    keys: Key[Array, "B"], num_positions: int, last_stage: int
) -> Float[Array, "B L K"]:
    """Each image's structure noise, which all its stages share."""
    return jax.vmap(lambda key: jax.random.normal(key, (num_positions, last_stage)))(keys)


@functools.partial(jax.jit, static_argnames=("tokenizer", "generator", "settings"))
def sample(
    tokenizer: Tokenizer,
    generator: Generator,
    settings: Settings,
    tokenizer_variables: Variables,
    generator_variables: Variables,
    class_id: Int[Array, "B"],
    keys: Key[Array, "B"],
    noise: Float[Array, "B L K"] | None = None,
    given: Given | None = None,
) -> GranularitySequence:
    """Generates one sequence for each class id.

    An image depends on its class, its key and what is given of it alone, not on the batch around
    it. `noise` takes the place of the structure noise drawn from the keys.
    """
    last_stage, length = generator.last_stage, generator.num_positions
    batch = class_id.shape[0]
    given = nothing_given(batch, length) if given is None else given
    noise_keys, token_keys, split_keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys).T
    if noise is None:
        noise = structure_noise(noise_keys, length, last_stage)
    canvas_noise = None
    if generator.noised_canvas:
        shape = (length, generator.latent_channels)
        canvas_keys = jax.vmap(jax.random.fold_in, (0, None))(noise_keys, 1)
        canvas_noise = jax.vmap(lambda key: jax.random.normal(key, shape))(canvas_keys)
    class_and_none = jnp.concatenate([class_id, jnp.full_like(class_id, generator.num_classes)])
    canvas_scales = tokenizer_variables["stats"]["quantizer"]["canvas_scales"]
    stages = last_stage + 1
    schedule = {
        "stage": jnp.arange(stages),
        "content_guidance": jnp.linspace(*settings.content_guidance, stages),
        "structure_guidance": jnp.linspace(*settings.structure_guidance, stages),
        "top_p": jnp.asarray(top_p_schedule(settings.top_p, last_stage), jnp.float32),
    }

    def generate(method, *args, **options):
        return generator.apply(generator_variables, *args, **options, method=method)

    def guided(predict, guidance):
        """Runs `predict` with and without the class at once, and moves away from "without"."""
        with_class, without = jnp.split(predict(class_and_none), 2)
        return without + guidance * (with_class - without)

    def twice(x):
        return None if x is None else jnp.concatenate([x, x])

    def given_content(canvas, structure, at):
        start = (1 << at["stage"]) - 1
        return jax.lax.dynamic_slice_in_dim(given.sequence.tokens, start, length, axis=1)

    def generated_content(canvas, structure, at):
        """The tokens of a stage, one for each of L clusters of which the first 2^stage exist."""
        labels = granularity.labels_at(structure, at["stage"])
        stage = jnp.full((2 * batch,), at["stage"])

        def predict(class_ids):
            final_canvas = generate(
                "predict_canvas",
                twice(canvas),
                twice(structure),
                stage,
                class_ids,
                canvas_scales,
                noise=twice(canvas_noise),
            )
            return generate("token_logits", final_canvas, twice(canvas), twice(labels), length)

        logits = guided(predict, at["content_guidance"])
        if settings.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        top_p = None if settings.top_p == (1.0, 1.0) else at["top_p"]
        logits = truncate(logits / settings.temperature, settings.top_k, top_p)
        stage_keys = jax.vmap(jax.random.fold_in, (0, None))(token_keys, at["stage"])
        return jax.vmap(jax.random.categorical)(stage_keys, logits).astype(jnp.int32)

    def flow_scores(canvas, structure, at):
        """Integrates the flow from noise; the stage's own channel scores which half is which."""
        stage = jnp.full((2 * batch,), at["stage"])
        known = (jnp.arange(last_stage) < at["stage"]) & generator.known_structure
        bits = granularity.structure_embedding(structure, at["stage"]) - 1.0
        times = jnp.asarray(flow_times(settings.flow_steps, length), jnp.float32)

        def euler(state, interval):
            time, next_time = interval

            def predict(class_ids):
                return generate(
                    "velocity",
                    twice(state),
                    twice(canvas),
                    twice(structure),
                    stage,
                    jnp.full((2 * batch,), time),
                    class_ids,
                )

            state += (next_time - time) * guided(predict, at["structure_guidance"])
            return jnp.where(known, bits, state), None

        state, _ = jax.lax.scan(euler, jnp.where(known, bits, noise), (times[:-1], times[1:]))
        return jnp.take(state, at["stage"], axis=-1)

    def split(scores, structure, at, gumbel=None):
        labels = granularity.labels_at(structure, at["stage"])
        children = granularity.balanced_split(scores, labels, 1 << at["stage"], gumbel)
        return granularity.structure_from_labels(children, at["stage"] + 1)

    def generated_split(canvas, structure, at):
        gumbel = None
        if settings.gumbel_split:
            stage_keys = jax.vmap(jax.random.fold_in, (0, None))(split_keys, at["stage"])
            gumbel = jax.vmap(lambda key: jax.random.gumbel(key, (length,)))(stage_keys)
        return split(flow_scores(canvas, structure, at), structure, at, gumbel)

    def random_split(canvas, structure, at):
        """The last split only names the two positions of each pair."""
        return split(noise[..., -1], structure, at)

    def no_split(canvas, structure, at):
        return structure

    def given_split(canvas, structure, at):
        children = granularity.labels_at(given.sequence.structure, at["stage"] + 1)
        return granularity.structure_from_labels(children, at["stage"] + 1)

    def paint_stage(state, at):
        canvas, structure = state
        keep_content = at["stage"] < given.content_stages
        tokens = jax.lax.cond(keep_content, given_content, generated_content, canvas, structure, at)
        labels = granularity.labels_at(structure, at["stage"])
        canvas += tokenizer.apply(tokenizer_variables, tokens, labels, at["stage"], method="brush")
        keep_split = at["stage"] + 1 < given.structure_stages
        structure = jax.lax.switch(
            jnp.where(keep_split, 3, jnp.clip(at["stage"] - (last_stage - 2), 0, 2)),
            (generated_split, random_split, no_split, given_split),
            canvas,
            structure,
            at,
        )
        return (canvas, structure), tokens

    blank = (
        jnp.zeros((batch, length, generator.latent_channels)),
        jnp.zeros((batch, length), jnp.int32),
    )
    (_, structure), tokens = jax.lax.scan(paint_stage, blank, schedule)
    heap = [tokens[stage, :, : 2**stage] for stage in range(stages)]
    return GranularitySequence(structure, jnp.concatenate(heap, axis=1))


@functools.partial(jax.jit, static_argnames=("tokenizer",))
def decode(
    tokenizer: Tokenizer, tokenizer_variables: Variables, sequence: GranularitySequence
) -> Float[Array, "B H W 3"]:
    """The images of finished sequences, in [-1, 1]."""
    return tokenizer.apply(tokenizer_variables, sequence, method="decode_sequence")


@functools.partial(jax.jit, static_argnames=("tokenizer",))
def decode_stages(
    tokenizer: Tokenizer, tokenizer_variables: Variables, sequence: GranularitySequence
) -> Float[Array, "B S H W 3"]:
    """The image of the canvas after each stage: the coarse-to-fine strip."""
    canvases = tokenizer.apply(tokenizer_variables, sequence, method="canvases")[:, 1:]
    batch, stages = canvases.shape[:2]
    images = tokenizer.apply(
        tokenizer_variables, canvases.reshape(batch * stages, *canvases.shape[2:]), method="decode"
    )
    return images.reshape(batch, stages, *images.shape[1:])
