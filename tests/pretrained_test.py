"""Weights that come with the package, and their cards."""

import hashlib
import importlib
import pathlib
import re

import jax.numpy as jnp
import pytest

from configs import nvg_digits
from nvg_jax import pretrained
from nvg_jax.generator.model import build_generator
from nvg_jax.tokenizer.model import build_tokenizer
from nvg_jax.weights import save_weights, saved_architecture


def mistakes(folder: pathlib.Path) -> list[str]:
    """What a card says wrongly of the files beside it."""
    card = (folder / "README.md").read_text()
    name = re.search(r"configs/(nvg_\w+)\.py", card)[1]
    config = importlib.import_module(f"configs.{name}").get_config()
    found = []
    for module in (build_tokenizer(config), build_generator(config)):
        path = folder / f"{type(module).__name__.lower()}.safetensors"
        if hashlib.sha256(path.read_bytes()).hexdigest() not in card:
            found.append(f"SHA-256 of {path.name}")
        if saved_architecture(path) != module.architecture:
            found.append(f"{name}.py for {path.name}")
    return found


@pytest.fixture
def folder(tmp_path):
    """As one of `pretrained`, but with one number for weights."""
    config = nvg_digits.get_config()
    for module in (build_tokenizer(config), build_generator(config)):
        path = tmp_path / "digits" / f"{type(module).__name__.lower()}.safetensors"
        save_weights(path, {"params": {"one": jnp.ones(1)}}, module.architecture)
    lines = [hashlib.sha256(path.read_bytes()).hexdigest() for path in path.parent.iterdir()]
    card = "\n".join(["configs/nvg_digits.py", *lines])
    (tmp_path / "digits" / "README.md").write_text(card)
    return tmp_path / "digits"


def test_all_are_listed():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "weights.md").read_text()
    listed = re.findall(
        r"^\| \[`(\w+)`\]\(\.\./nvg_jax/pretrained/\1/README\.md\)", page, re.MULTILINE
    )
    assert sorted(listed) == sorted(pretrained.names())


def test_cards_say_what_is_in_the_files(folder):
    assert mistakes(folder) == []
    for name in pretrained.names():
        assert mistakes(pretrained.folder(name)) == [], name
    card, file = folder / "README.md", folder / "generator.safetensors"
    card.write_text(card.read_text().replace("nvg_digits", "nvg_shapes"))
    assert mistakes(folder) == [
        f"nvg_shapes.py for {x}.safetensors" for x in ("tokenizer", "generator")
    ]
    card.write_text(card.read_text().replace("nvg_shapes", "nvg_digits"))
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    assert mistakes(folder) == ["SHA-256 of generator.safetensors"]
