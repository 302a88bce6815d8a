"""Sampling: content and structure in turn, stage by stage (paper, Sec. 3.3, 4.1).

`sample` is the method's loop, in Python. What it calls is compiled once for each tokenizer,
generator and batch size, but for the drawing of tokens and the brush, which are small and compiled
for each stage, since stage k has 2^k tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from nvg_jax import granularity, keys
from nvg_jax.generator import content
from nvg_jax.generator.model import Generator
from nvg_jax.granularity import GranularitySequence
from nvg_jax.sharding import split_batch
from nvg_jax.tokenizer.model import Tokenizer, canvas_scales

Variables = Any
Canvas = Float[Array, "B L C"]
Structure = Int[Array, "B L"]
Stage = Int[Array | np.ndarray, ""]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample. Pairs are the values at the first and the last stage.

    content_guidance, structure_guidance: classifier-free guidance, linear over stages; 1 is none.
    temperature: of the tokens; 0 takes the most likely one.
    top_k: how many of the likeliest tokens to draw from; 0 is all.
    top_p: probability mass to draw from, falling as the geometric spacing of the stages grows.
    flow_steps: steps of each structure map.
    gumbel_split: whether the halves of a split are drawn, instead of taking the top half.
    """

    content_guidance: tuple[float, float] = (1.0, 3.5)
    structure_guidance: tuple[float, float] = (1.0, 2.5)
    temperature: float = 1.0
    top_k: int = 0
    top_p: tuple[float, float] = (1.0, 0.5)
    flow_steps: int = 25
    gumbel_split: bool = False

    @classmethod
    def from_config(cls, config: ConfigDict) -> Settings:
        """The part of a `config.sampling` that the loop needs."""
        values = {field.name: config[field.name] for field in dataclasses.fields(cls)}
        # A config that was read from JSON has lists.
        return cls(**{name: tuple(x) if isinstance(x, list) else x for name, x in values.items()})

    def content_guidance_at(self, stage: int, last_stage: int) -> float:
        return float(np.linspace(*self.content_guidance, last_stage + 1)[stage])

    def structure_guidance_at(self, stage: int, last_stage: int) -> float:
        """The ramp ends at the last stage, though the last structure generated is of K - 2."""
        return float(np.linspace(*self.structure_guidance, last_stage + 1)[stage])

    def top_p_at(self, stage: int, last_stage: int) -> float:
        return float(top_p_schedule(self.top_p, last_stage)[stage])


class Given(NamedTuple):
    """What is not generated: the structure maps and the tokens of the first stages.

    sequence: holds them; what it has of later stages does not matter.
    structure_stages: how many stages, from 0 on, take their map from the sequence; 0..K + 1. (That
      of stage 0 is the same for all images.)
    content_stages: how many take their tokens from it, at most as many as their map, or 1.
    """

    sequence: GranularitySequence
    structure_stages: int
    content_stages: int


def given_structure(structure: Int[Array | np.ndarray, "B L"], stages: int) -> Given:
    """The structure of the first stages, from 0 on, and no content."""
    no_tokens = np.zeros((len(structure), 2 * structure.shape[1] - 1), np.int32)
    return Given(GranularitySequence(structure, no_tokens), stages, 0)


def top_p_schedule(top_p: tuple[float, float], last_stage: int) -> Float[np.ndarray, "stages"]:
    """Top-p of each stage: from one value to the other as `a` goes geometrically from 1 to K."""
    a = np.geomspace(1.0, last_stage, last_stage + 1)
    return top_p[0] + (top_p[1] - top_p[0]) * (a - 1.0) / max(last_stage - 1, 1)


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
) -> GranularitySequence:
    """Generates one sequence for each class id.

    An image depends on its class, its key and what is given of it alone, not on the batch around
    it. `noise` takes the place of the structure noise drawn from the keys.
    """
    last_stage, params = generator.sizes.last_stage, generator_variables["params"]
    structure_given = given.structure_stages if given else 0
    content_given = given.content_stages if given else 0
    canvas, structure, drawn, canvas_noise = _start(generator, image_keys)
    noise = drawn if noise is None else noise
    heap = []
    for stage in range(last_stage + 1):
        number = np.int32(stage)  # As an argument of programs that serve all stages.
        if stage < content_given:
            tokens = granularity.stage_tokens(given.sequence.tokens, stage)
        else:
            final_canvases = _final_canvases(
                generator,
                params["content"],
                canvas,
                structure,
                number,
                class_id,
                canvas_scales(tokenizer_variables),
                canvas_noise,
            )
            tokens = _draw_tokens(
                generator,
                settings,
                stage,
                params["content"],
                final_canvases,
                canvas,
                structure,
                image_keys,
            )
        heap.append(tokens)
        canvas = _paint(tokenizer, stage, tokenizer_variables, canvas, tokens, structure)
        if stage == last_stage:
            break
        if stage + 1 < structure_given:
            structure = _given_structure(given.sequence.structure, np.int32(stage + 1))
        elif stage == last_stage - 1:
            # The last split only names the two positions of each pair.
            structure = _split(noise[..., -1], structure, number)
        else:
            scores = _scores(
                generator,
                settings.flow_steps,
                params["structure"],
                canvas,
                structure,
                number,
                class_id,
                noise,
                np.float32(settings.structure_guidance_at(stage, last_stage)),
            )
            gumbel_keys = image_keys if settings.gumbel_split else None
            structure = _split(scores, structure, number, gumbel_keys)
    return GranularitySequence(structure, _joined(heap))


@functools.partial(jax.jit, static_argnames="generator")
def _start(
    generator: Generator, image_keys: Key[Array, "B"]
) -> tuple[Canvas, Structure, Float[Array, "B L K"], Canvas | None]:
    """The empty canvas, the structure of one cluster, and the noise of both models."""
    sizes, batch = generator.sizes, image_keys.shape[0]
    canvas = jnp.zeros((batch, sizes.num_positions, sizes.latent_channels))
    structure = jnp.zeros((batch, sizes.num_positions), jnp.int32)
    noise = generator.structure.noise(image_keys)
    canvas_noise = generator.content.noise(image_keys)
    return jax.tree.map(split_batch, (canvas, structure, noise, canvas_noise))


@functools.partial(jax.jit, static_argnames="generator")
def _final_canvases(
    generator: Generator,
    params: Variables,
    canvas: Canvas,
    structure: Structure,
    stage: Stage,
    class_id: Int[Array, "B"],
    scales: Float[Array, "canvases"],
    noise: Canvas | None,
) -> tuple[Canvas, Canvas]:
    """The predicted final canvases, with the class and without."""
    batch = class_id.shape[0]
    no_class = jnp.full_like(class_id, generator.sizes.num_classes)
    both = generator.content.apply(
        {"params": params},
        jnp.concatenate([canvas, canvas]),
        jnp.concatenate([structure, structure]),
        jnp.full((2 * batch,), stage),
        jnp.concatenate([class_id, no_class]),
        scales,
        None if noise is None else jnp.concatenate([noise, noise]),
    )
    return both[:batch], both[batch:]


@functools.partial(jax.jit, static_argnames=("generator", "settings", "stage"))
def _draw_tokens(
    generator: Generator,
    settings: Settings,
    stage: int,
    params: Variables,
    final_canvases: tuple[Canvas, Canvas],
    canvas: Canvas,
    structure: Structure,
    image_keys: Key[Array, "B"],
) -> Int[Array, "B N"]:
    """The stage's tokens, from the logits with the class, moved away from those without."""
    last_stage = generator.sizes.last_stage
    with_class, without = (
        generator.content.token_logits(
            params, generator.content.missing(final_canvas, canvas, structure, stage)
        )
        for final_canvas in final_canvases
    )
    guidance = settings.content_guidance_at(stage, last_stage)
    logits = without + guidance * (with_class - without)
    stage_keys = jax.vmap(lambda key: jax.random.fold_in(keys.named(key, "tokens"), stage))
    top_p = settings.top_p_at(stage, last_stage)
    return content.draw(logits, stage_keys(image_keys), settings.temperature, settings.top_k, top_p)


@functools.partial(jax.jit, static_argnames=("tokenizer", "stage"), donate_argnames="canvas")
def _paint(
    tokenizer: Tokenizer,
    stage: int,
    variables: Variables,
    canvas: Canvas,
    tokens: Int[Array | np.ndarray, "B N"],
    structure: Structure,
) -> Canvas:
    """The canvas with what the stage adds."""
    labels = granularity.labels_at(structure, stage)
    return canvas + tokenizer.apply(variables, tokens, labels, stage, method=Tokenizer.brush)


@functools.partial(jax.jit, static_argnames=("generator", "num_steps"))
def _scores(
    generator: Generator,
    num_steps: int,
    params: Variables,
    canvas: Canvas,
    structure: Structure,
    stage: Stage,
    class_id: Int[Array, "B"],
    noise: Float[Array, "B L K"],
    guidance: Float[Array | np.ndarray, ""],
) -> Float[Array, "B L"]:
    """As the structure generator's `scores`."""
    return generator.structure.scores(
        params, canvas, structure, stage, class_id, noise, guidance, num_steps
    )


@jax.jit
def _split(
    scores: Float[Array, "B L"],
    structure: Structure,
    stage: Stage,
    gumbel_keys: Key[Array, "B"] | None = None,
) -> Structure:
    """The structure with every cluster of the stage split into halves, drawn if keys are given."""
    gumbel = None
    if gumbel_keys is not None:

        def noise(key: Key[Array, ""]) -> Float[Array, "L"]:
            key = jax.random.fold_in(keys.named(key, "split"), stage)
            return jax.random.gumbel(key, scores.shape[1:])

        gumbel = jax.vmap(noise)(gumbel_keys)
    labels = granularity.labels_at(structure, stage)
    children = granularity.balanced_split(scores, labels, 1 << stage, gumbel)
    return granularity.structure_from_labels(children, stage + 1)


@jax.jit
def _given_structure(structure: Int[Array, "B L"], stage: Stage) -> Structure:
    return granularity.structure_at(structure, stage)


@jax.jit
def _joined(heap: list[Int[Array, "B _"]]) -> Int[Array, "B heap"]:
    return jnp.concatenate(heap, axis=1)
