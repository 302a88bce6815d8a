"""The modules that a config describes."""

from __future__ import annotations

import jax.numpy as jnp
from ml_collections import ConfigDict

from nvg_jax.errors import UserError
from nvg_jax.generator.model import Generator
from nvg_jax.generator.transformer import rope_axis_dims
from nvg_jax.tokenizer.autoencoder import downsampling
from nvg_jax.tokenizer.model import Tokenizer


def build_tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer of a whole run's config; UserError if its sizes do not fit together."""
    model = config.tokenizer.model
    factor = downsampling(model.multipliers)
    if config.data.image_size % factor:
        raise UserError(
            f"config.data.image_size={config.data.image_size} is not a multiple of {factor}, the "
            "downsampling of config.tokenizer.model.multipliers"
        )
    if model.width % 32:
        raise UserError(
            f"config.tokenizer.model.width={model.width} is not a multiple of 32, the number of "
            "groups that are normalised together"
        )
    tokenizer = Tokenizer(
        image_size=config.data.image_size,
        width=model.width,
        multipliers=tuple(model.multipliers),
        num_blocks=model.num_blocks,
        latent_channels=model.latent_channels,
        vocab_size=model.vocab_size,
    )
    _ = tokenizer.last_stage  # Raises if the positions are not a power of two.
    return tokenizer


def build_generator(config: ConfigDict) -> Generator:
    """The generator of a whole run's config, over its tokenizer's positions and codes.

    UserError if its sizes do not fit together.
    """
    tokenizer = build_tokenizer(config)
    model = config.generator.model
    if model.dtype not in ("float32", "bfloat16"):
        raise UserError(
            f"config.generator.model.dtype={model.dtype} is neither float32 nor bfloat16"
        )
    for name in ("content", "structure"):
        width, heads = model[f"{name}_width"], model[f"{name}_heads"]
        if heads < 1 or width % (2 * heads):
            raise UserError(
                f"config.generator.model.{name}_width={width} is not an even number of dims for "
                f"each of {name}_heads={heads} heads"
            )
        rope_axis_dims(width // heads, tokenizer.last_stage)  # Raises if a head is too narrow.
    return Generator(
        depth=model.depth,
        content_width=model.content_width,
        content_heads=model.content_heads,
        structure_width=model.structure_width,
        structure_heads=model.structure_heads,
        grid=tokenizer.grid,
        latent_channels=tokenizer.latent_channels,
        vocab_size=tokenizer.vocab_size,
        num_classes=config.data.num_classes,
        drop_path=model.drop_path,
        remat=model.remat,
        dtype=jnp.dtype(model.dtype),
        structure_rope=model.structure_rope,
        final_canvas=model.final_canvas,
        noised_canvas=model.noised_canvas,
        known_structure=model.known_structure,
    )
