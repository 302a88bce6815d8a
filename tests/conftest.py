"""Small models with the reference weights, next to the reference arrays they have to reproduce."""

import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from nvg_jax import clustering
from nvg_jax.interop import released
from nvg_jax.models.generator import Generator
from nvg_jax.models.quantizer import Quantized
from nvg_jax.models.tokenizer import Tokenizer

GOLDEN = pathlib.Path(__file__).parent / "golden"
_STATE_DICT = "state_dict."


class Golden(NamedTuple):
    """A module, its variables, the `state_dict` they come from, and the reference arrays."""

    module: nn.Module
    variables: Any
    state_dict: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]


class Sequences(NamedTuple):
    """What the generator's reference arrays are trained on."""

    structure: Any
    quantized: Quantized
    class_id: Any


def _load(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    with np.load(GOLDEN / name, allow_pickle=False) as file:
        arrays = dict(file)
    state_dict = {
        key.removeprefix(_STATE_DICT): arrays.pop(key)
        for key in list(arrays)
        if key.startswith(_STATE_DICT)
    }
    return state_dict, arrays


def _tokenizer(image_size: int) -> Tokenizer:
    return Tokenizer(
        image_size=image_size,
        width=32,
        multipliers=(1, 1, 1, 2, 2),
        num_blocks=1,
        latent_channels=32,
        vocab_size=64,
    )


@pytest.fixture(scope="session")
def golden_tokenizer() -> Golden:
    """64 x 64 images, 4 x 4 positions. The scales are made up: the references have none."""
    state_dict, arrays = _load("tokenizer.npz")
    module = _tokenizer(image_size=64)
    scales = np.linspace(1.0, 2.0, 6, dtype=np.float32)
    variables = released.tokenizer_variables(state_dict, module, scales)
    return Golden(module, jax.tree.map(jnp.asarray, variables), state_dict, arrays)


@pytest.fixture(scope="session")
def golden_generator() -> Golden:
    """16 x 16 positions."""
    state_dict, arrays = _load("generator.npz")
    module = Generator(
        depth=2,
        content_width=128,
        content_heads=2,
        structure_width=64,
        structure_heads=1,
        grid=(16, 16),
        latent_channels=32,
        vocab_size=64,
        num_classes=10,
    )
    variables = released.generator_variables(state_dict, module)
    return Golden(module, jax.tree.map(jnp.asarray, variables), state_dict, arrays)


@pytest.fixture(scope="session")
def golden_generator_tokenizer(golden_tokenizer, golden_generator) -> Golden:
    """The tokenizer under the golden generator: its own codebook, refiners and canvas scales.

    The references were computed with the published scales; the buffer beside them is rounded.
    """
    state_dict = golden_tokenizer.state_dict | golden_generator.state_dict
    module = _tokenizer(image_size=256)
    variables = released.tokenizer_variables(state_dict, module)
    return Golden(module, jax.tree.map(jnp.asarray, variables), state_dict, golden_generator.arrays)


@pytest.fixture(scope="session")
def golden_sequences(golden_generator_tokenizer) -> Sequences:
    tokenizer, variables, _, arrays = golden_generator_tokenizer
    latent = jnp.asarray(rearrange(arrays["latent"], "b c h w -> b (h w) c"), jnp.float32)
    structure = clustering.cluster(latent)
    quantized = tokenizer.apply(
        variables, latent, structure, method=lambda module, *args: module.quantizer(*args)
    )
    return Sequences(structure, quantized, jnp.asarray(arrays["class_label"], jnp.int32))
