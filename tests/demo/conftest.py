"""A tiny model for the page, of random weights."""

import pytest

from nvg_jax.generator.model import build_generator
from nvg_jax.tokenizer.model import build_tokenizer
from nvg_jax.weights import save_weights


@pytest.fixture
def tiny_weights(tiny_config, random_variables, tmp_path_factory):
    """A config that names weights, and a workdir in which there is nothing."""
    folder = tmp_path_factory.getbasetemp() / "random_weights"
    for name, build in (("tokenizer", build_tokenizer), ("generator", build_generator)):
        module = build(tiny_config)
        tiny_config[name].checkpoint = str(folder / f"{name}.safetensors")
        if not (folder / f"{name}.safetensors").exists():
            variables = random_variables(module.init_variables)
            save_weights(folder / f"{name}.safetensors", variables, module.architecture)
    return tiny_config, str(folder)
