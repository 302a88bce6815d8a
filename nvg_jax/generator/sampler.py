"""Sampling: content and structure in turn, stage by stage (paper, Sec. 3.3, 4.1).

`stages` is the method's loop over the painted stages, in Python. What it calls is compiled once for
each tokenizer, generator, batch size and number of steps, but for the drawing of tokens: stage k
has 2^k rows of logits, so that it is compiled for each of the large stages; those of up to
SHARED_ROWS tokens share a program.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from nvg_jax import granularity, keys
from nvg_jax.generator import content
from nvg_jax.generator.given import Given, Kept
from nvg_jax.generator.guidance import guide, with_no_class
from nvg_jax.generator.model import Generator
from nvg_jax.generator.settings import Settings
from nvg_jax.generator.structure import embedding
from nvg_jax.granularity import GranularitySequence
from nvg_jax.sharding import split_batch
from nvg_jax.tokenizer.model import Tokenizer, canvas_scales

Variables = Any
Stage = Int[Array | np.ndarray, ""]
Number = Float[Array | np.ndarray, ""]

SHARED_ROWS = 64


class State(NamedTuple):
    """A batch of images on the way: what stays the same of each, and what is painted so far."""

    class_id: Int[Array, "B"]
    keys: Key[Array, "B"]
    noise: Float[Array, "B L K"]
    canvas_noise: Float[Array, "B L C"] | None
    canvas: Float[Array, "B L C"]
    structure: Int[Array, "B L"]
    tokens: Int[Array, "B heap"]
    kept: Kept | None = None


def sample(
    tokenizer: Tokenizer,
    generator: Generator,
    settings: Settings,
    tokenizer_variables: Variables,
    generator_variables: Variables,
    class_id: Int[Array | np.ndarray, "B"],
    image_keys: Key[Array, "B"],
    noise: Float[Array, "B L K"] | None = None,
    given: Given | None = None,
    kept: Kept | None = None,
) -> GranularitySequence:
    """Generates one sequence for each class id.

    An image depends on its class, its key and what is given or kept of it, not on the batch around
    it. `noise` takes the place of the structure noise drawn from the keys. What is given goes
    before what is kept, which has to have the same structure there.
    """
    variables = tokenizer_variables, generator_variables
    rest = class_id, image_keys, noise, given, kept
    every = stages(tokenizer, generator, settings, *variables, *rest)
    (state,) = collections.deque(every, maxlen=1)
    return GranularitySequence(state.structure, state.tokens)


def stages(
    tokenizer: Tokenizer,
    generator: Generator,
    settings: Settings,
    tokenizer_variables: Variables,
    generator_variables: Variables,
    class_id: Int[Array | np.ndarray, "B"],
    image_keys: Key[Array, "B"],
    noise: Float[Array, "B L K"] | None = None,
    given: Given | None = None,
    kept: Kept | None = None,
) -> Iterator[State]:
    """As `sample`, stage by stage: the state after each that is painted."""
    painted = generator.sizes.stages
    last_stage, params = generator.sizes.last_stage, generator_variables["params"]
    scales = canvas_scales(tokenizer_variables)
    sequence, structure_given, content_given = given or (None, 0, 0)
    runs = settings.structure_stages or range(last_stage)
    state, scores = _start(generator, class_id, image_keys, noise, kept), None
    # NumPy's numbers are arguments of programs that serve all stages.
    for before, stage in itertools.pairwise((0, *painted)):
        is_due = scores is None or before in runs
        for split in range(before, stage):
            if split + 1 < structure_given:
                state = _give_structure(state, sequence.structure, np.int32(split))
            elif split == last_stage - 1:  # Only names the two positions of each pair.
                state = _split(state, state.noise, np.int32(split))
            else:
                if is_due:
                    guidance = settings.guidance("structure", before, last_stage)
                    at = np.int32(before), None if split == before else np.int32(split), guidance
                    steps, of_structure = settings.flow_steps, params["structure"]
                    scores, is_due = _scores(generator, steps, of_structure, state, *at), False
                state = _split(state, scores, np.int32(split), settings.gumbel_split)
        number, start = np.int32(stage), granularity.stage_slice(stage, painted).start
        if stage < content_given:
            tokens = _given_tokens(sequence.tokens, np.int32(start), 2**last_stage)
        else:
            guidance = settings.guidance("content", stage, last_stage)
            passes = 1 if guidance is None or generator.sizes.guided_content else 2
            missing, drawing = _missing(
                generator, passes, params["content"], state, number, scales, guidance
            )
            rows = min(max(2**stage, SHARED_ROWS), 2**last_stage)
            how = guidance, *settings.bounds(stage, last_stage)
            tokens = _draw_tokens(
                generator, rows, settings.top_k, params["content"], missing, drawing, *how
            )
            if kept:
                tokens = _keep_tokens(tokenizer, tokenizer_variables, state, tokens, number)
        state = _paint(tokenizer, tokenizer_variables, state, tokens, number, np.int32(start))
        yield state


@functools.partial(jax.jit, static_argnames="generator")
def _start(
    generator: Generator,
    class_id: Int[Array, "B"],
    image_keys: Key[Array, "B"],
    noise: Float[Array, "B L K"] | None,
    kept: Kept | None,
) -> State:
    """The empty canvas, the structure of one cluster, and the noise of both models."""
    sizes, batch = generator.sizes, image_keys.shape[0]
    canvas = jnp.zeros((batch, sizes.num_positions, sizes.latent_channels))
    structure = jnp.zeros((batch, sizes.num_positions), jnp.int32)
    noise = generator.structure.noise(image_keys) if noise is None else noise
    canvas_noise = generator.content.noise(image_keys)
    tokens = jnp.zeros((batch, granularity.num_tokens(sizes.stages)), jnp.int32)
    arrays = jax.tree.map(split_batch, (noise, canvas_noise, canvas, structure, tokens))
    return State(class_id, image_keys, *arrays, kept)


@functools.partial(jax.jit, static_argnames=("generator", "passes"))
def _missing(
    generator: Generator,
    passes: int,
    params: Variables,
    state: State,
    stage: Stage,
    scales: Float[Array, "scales"],
    guidance: Number | None,
) -> tuple[Float[Array, "passes B L C"], Key[Array, "B"]]:
    """What is missing in each cluster, with the class and in a second pass without it, and the keys
    to draw the tokens with. guidance: of a network that takes it.

    Of the L clusters the first 2^stage exist, so that one program serves all stages.
    """
    of_network = state._replace(keys=None, kept=None)
    each = jax.tree.map(lambda x: jnp.concatenate([x] * passes), of_network)
    classes = with_no_class(state.class_id, generator.sizes.num_classes, passes)
    taken = None
    if generator.sizes.guided_content:
        taken = jnp.full(classes.shape, 1.0 if guidance is None else guidance)
    final_canvas = generator.content.apply(
        {"params": params},
        each.canvas,
        each.structure,
        jnp.full_like(classes, stage),
        classes,
        scales,
        each.canvas_noise,
        guidance=taken,
    )
    labels = granularity.labels_at(each.structure, stage)
    length = generator.sizes.num_positions
    missing = generator.content.missing(final_canvas, each.canvas, labels, length)
    stage_keys = keys.of_stage(state.keys, "tokens", stage)
    return jnp.stack(jnp.split(missing, passes)), stage_keys


@functools.partial(jax.jit, static_argnames=("generator", "rows", "top_k"))
def _draw_tokens(
    generator: Generator,
    rows: int,
    top_k: int,
    params: Variables,
    missing: Float[Array, "passes B L C"],
    stage_keys: Key[Array, "B"],
    guidance: Number | None,
    temperature: Number | None,
    top_p: Number | None,
) -> Int[Array, "B L"]:
    """Tokens for the first `rows` clusters, from the logits with the class and without."""
    logits = [generator.content.token_logits(params, each[:, :rows]) for each in missing]
    tokens = content.draw(guide(logits, guidance), stage_keys, temperature, top_k, top_p)
    return jnp.pad(tokens, ((0, 0), (0, generator.sizes.num_positions - rows)))


@functools.partial(jax.jit, static_argnames="length")
def _given_tokens(
    heap: Int[Array | np.ndarray, "B heap"], start: Stage, length: int
) -> Int[Array, "B {length}"]:
    """The tokens from a stage's first on, of which the first 2^stage count."""
    return jax.lax.dynamic_slice_in_dim(heap, start, length, axis=1)


@functools.partial(jax.jit, static_argnames="tokenizer")
def _keep_tokens(
    tokenizer: Tokenizer,
    variables: Variables,
    state: State,
    tokens: Int[Array, "B L"],
    stage: Stage,
) -> Int[Array, "B L"]:
    """With the nearest tokens in place of those of clusters that have kept positions."""
    is_kept = state.kept.structure >= 0
    labels = jnp.where(is_kept, granularity.labels_at(state.structure, stage), -1)  # -1: in none.
    lacking = state.kept.latent - state.canvas
    mean = granularity.cluster_mean(lacking, labels, lacking.shape[1])
    nearest = tokenizer.apply(variables, mean, method=Tokenizer.nearest)
    of_kept = jax.nn.one_hot(labels, lacking.shape[1], axis=1, dtype=bool).any(axis=-1)
    return jnp.where(of_kept, nearest, tokens)


@functools.partial(jax.jit, static_argnames="tokenizer")
def _paint(
    tokenizer: Tokenizer,
    variables: Variables,
    state: State,
    tokens: Int[Array, "B L"],
    stage: Stage,
    start: Stage,
) -> State:
    """With what the stage adds to the canvas and, from `start` on, to the heap.

    What stands in the heap after the stage's 2^stage tokens is overwritten by the next stage.
    """
    labels = granularity.labels_at(state.structure, stage)
    brush = tokenizer.apply(variables, tokens, labels, stage, method=Tokenizer.brush)
    heap = jax.lax.dynamic_update_slice_in_dim(state.tokens, tokens, start, axis=1)
    return state._replace(canvas=state.canvas + brush, tokens=heap)


@functools.partial(jax.jit, static_argnames=("generator", "num_steps"))
def _scores(
    generator: Generator,
    num_steps: int,
    params: Variables,
    state: State,
    stage: Stage,
    decided: Stage | None,
    guidance: Number | None,
) -> Float[Array, "B L K"]:
    """As the structure generator's `scores`; it holds what is kept, and what is decided already.

    decided: the first splits, where there are more of them than the stage knows.
    """
    given = (state.canvas, state.structure, stage, state.class_id, state.noise, guidance)
    held = None
    if state.kept:
        structure = state.kept.structure
        held = jnp.where(structure[..., None] < 0, 0.0, embedding(structure, state.noise.shape[-1]))
    if decided is not None:
        bits = embedding(state.structure, decided)
        held = bits if held is None else jnp.where(bits == 0, held, bits)
    return generator.structure.scores(params, *given, num_steps, held)


@functools.partial(jax.jit, static_argnames="is_drawn")
def _split(
    state: State, scores: Float[Array, "B L K"], stage: Stage, is_drawn: bool = False
) -> State:
    """With the clusters of the stage split by its channel of the scores."""
    scores = jnp.take(scores, stage, axis=-1)
    if state.kept:
        child = granularity.labels_at(state.kept.structure, stage + 1)
        half = jnp.where(child % 2 == 1, jnp.inf, -jnp.inf)
        scores = jnp.where(child < 0, scores, half)
    gumbel = None
    if is_drawn:
        stage_keys = keys.of_stage(state.keys, "split", stage)
        gumbel = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[1:]))(stage_keys)
    labels = granularity.labels_at(state.structure, stage)
    children = granularity.balanced_split(scores, labels, 1 << stage, gumbel)
    return state._replace(structure=granularity.structure_from_labels(children, stage + 1))


@jax.jit
def _give_structure(state: State, structure: Int[Array | np.ndarray, "B L"], stage: Stage) -> State:
    """With the given structure of the next stage."""
    return state._replace(structure=granularity.structure_at(structure, stage + 1))
