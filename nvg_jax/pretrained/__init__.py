"""Trained weights by their names: those that come with the package, and released ones, fetched.

A folder here is a name, and nothing else has to be added: it holds `tokenizer.safetensors` and
`generator.safetensors`, as `--job=export` writes them, and `README.md`, the model card, which names
the config they are for and the SHA-256 of both. Released ones are put by `nvg_jax.interop.fetch`
beside the frozen networks' weights.
"""

import os
import pathlib

from nvg_jax.errors import UserError
from nvg_jax.frozen.weights import how_to_fetch, weights_directory

FOLDER = pathlib.Path(__file__).parent
# Each released model, which is also the name of its config, and its file in the repository.
GENERATORS = {f"nvg_d{depth}": f"ckpt/d{depth}.ckpt" for depth in (16, 20, 24)}
TOKENIZER = "nvg_tokenizer"
RELEASED = {TOKENIZER: "ckpt/ae.ckpt"} | GENERATORS


def names() -> list[str]:
    """Those that come with the package."""
    return sorted(path.parent.name for path in FOLDER.glob("*/generator.safetensors"))


def folder(name: str, directory: str | os.PathLike = "") -> os.PathLike:
    """Where a name's weights are.

    directory: of all that is fetched; '' for the default. Raises UserError if there is no such
    name, or it has not been fetched.
    """
    if name in names():
        return FOLDER / name
    if name not in RELEASED:
        known = ", ".join((*names(), *RELEASED))
        raise UserError(f"config.pretrained={name!a} is not among the weights here: {known}")
    fetched = weights_directory(directory) / name
    if not fetched.exists():
        advice = how_to_fetch(name, directory)
        raise UserError(f"config.pretrained={name}: {fetched} is not there: {advice}")
    return fetched


def weights(name: str, part: str, directory: str | os.PathLike = "") -> str:
    """The path of a name's 'tokenizer' or 'generator', '' for the one that `nvg_tokenizer` lacks.

    Raises UserError as `folder`.
    """
    where = folder(name, directory)
    if name in RELEASED:
        return "" if (name, part) == (TOKENIZER, "generator") else f"{where}/{part}"
    return f"{where}/{part}.safetensors"
