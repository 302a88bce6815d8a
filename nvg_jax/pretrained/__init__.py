"""Trained weights that come with the package: a folder for each name, and nothing else to add.

A folder holds `tokenizer.safetensors` and `generator.safetensors`, as `--job=export` writes them,
and `README.md`, the model card, which names the config they are for and the SHA-256 of both.
"""

import pathlib

from nvg_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parent


def names() -> list[str]:
    """What `config.pretrained` may be."""
    return sorted(path.parent.name for path in FOLDER.glob("*/generator.safetensors"))


def folder(name: str) -> pathlib.Path:
    """Where a name's files are. Raises UserError if there is no such name."""
    if name not in names():
        there = ", ".join(names()) or "none"
        raise UserError(f"config.pretrained={name!a} is not among the weights here: {there}")
    return FOLDER / name
