"""Sampling from VAR: scale after scale, with the keys and values of those before."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from nvg_jax import keys
from nvg_jax.baselines.var.generator import VarGenerator
from nvg_jax.baselines.var.tokenizer import PyramidTokenizer
from nvg_jax.generator.content import draw
from nvg_jax.generator.guidance import guide, with_no_class
from nvg_jax.generator.settings import Settings, ramp, top_p_at
from nvg_jax.granularity import GranularitySequence
from nvg_jax.sharding import split_batch
from nvg_jax.tokenizer.model import canvas_scales

Variables = Any


@functools.partial(jax.jit, static_argnames=("tokenizer", "generator", "settings"))
def sample(
    tokenizer: PyramidTokenizer,
    generator: VarGenerator,
    settings: Settings,
    tokenizer_variables: Variables,
    generator_variables: Variables,
    class_id: Int[Array, "B"],
    image_keys: Key[Array, "B"],
) -> GranularitySequence:
    """Generates one sequence for each class id; what the settings say of structure is not for VAR.

    An image depends on its class and its key, not on the batch around it.
    """
    sizes, scales = generator.sizes, canvas_scales(tokenizer_variables)
    guidances = [
        ramp(settings.content_guidance, stage, sizes.last_stage)
        for stage in range(sizes.last_stage + 1)
    ]
    passes = 1 if set(guidances) == {1.0} else 2  # The second has a cache as well.
    classes = with_no_class(class_id, sizes.num_classes, passes)
    temperature = jnp.float32(settings.temperature) if settings.temperature else None
    shape = (len(class_id), tokenizer.num_positions, sizes.latent_channels)
    canvas, tokens, start = split_batch(jnp.zeros(shape)), [], 0
    variables = {"params": generator_variables["params"]["transformer"]}
    for stage, guidance in enumerate(guidances):
        given = generator.input(canvas, scales, stage)[:, (1 if stage == 0 else 0) :]
        logits, cache = generator.network.apply(
            variables, jnp.concatenate([given] * passes), classes, start, mutable=["cache"]
        )
        variables |= cache
        start += logits.shape[1]
        logits = guide(jnp.split(logits, passes), guidance)
        stage_keys = keys.of_stage(image_keys, "tokens", stage)
        top_p = None
        if settings.top_p != (1.0, 1.0):
            top_p = jnp.float32(top_p_at(settings.top_p, stage, sizes.last_stage))
        drawn = draw(logits, stage_keys, temperature, settings.top_k, top_p)
        canvas += tokenizer.apply(tokenizer_variables, drawn, None, stage, method="brush")
        tokens.append(drawn)
    return GranularitySequence(None, jnp.concatenate(tokens, axis=1))
