"""The modules that a config describes."""

from __future__ import annotations

import jax.numpy as jnp
from ml_collections import ConfigDict

from nvg_jax.errors import UserError
from nvg_jax.models.autoencoder import downsampling
from nvg_jax.models.generator import Generator
from nvg_jax.models.tokenizer import Tokenizer


def build_tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer of a whole run's config; UserError if the image size does not fit it."""
    model = config.tokenizer.model
    factor = downsampling(model.multipliers)
    if config.data.image_size % factor:
        raise UserError(
            f"config.data.image_size={config.data.image_size} is not a multiple of {factor}, the "
            "downsampling of config.tokenizer.model.multipliers"
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
    """The generator of a whole run's config, over its tokenizer's positions and codes."""
    tokenizer = build_tokenizer(config)
    model = config.generator.model
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
    )
