"""The authors' models: downloaded from their gated repository on the Hugging Face hub, converted.

Whoever wants them agrees there to the licence, and needs a token of the hub.
"""

import hashlib
import importlib
import os
import pathlib
import re
from collections.abc import Mapping

from etils import epath

from nvg_jax import hub
from nvg_jax.errors import UserError
from nvg_jax.interop.convert import convert
from nvg_jax.pretrained import RELEASED, TOKENIZER

REPOSITORY = "yikaiwang/NVG"
LICENCE = "S-Lab License 1.0, non-commercial"


def write(name: str, target: epath.PathLike, given: Mapping[str, epath.PathLike]) -> None:
    """Writes the weights of a released model to `target`/tokenizer and `target`/generator.

    A generator's tokenizer is the one that its file carries; `nvg_tokenizer` has no generator.

    name: of `pretrained.RELEASED`. given: paths of files that are there already, by these names.

    UserError: the hub does not give the file, or it is damaged or another one.
    """
    config = importlib.import_module(
        f"nvg_jax.configs.{'nvg_d16' if name == TOKENIZER else name}"
    ).get_config()
    generator = "" if name == TOKENIZER else _file(name, given)
    tokenizer = _file(name, given) if name == TOKENIZER else given.get(TOKENIZER, "")
    convert(config, str(tokenizer), str(generator), str(target))


def _file(name: str, given: Mapping[str, epath.PathLike]) -> epath.PathLike:
    """The given file, or else that of the repository, in the cache of the hub's client."""
    if name in given:
        return given[name]
    print(f"downloading {address(name)} ({LICENCE})", flush=True)
    path = hub.download(address(name), REPOSITORY, RELEASED[name])
    _check(name, path)
    return path


def address(name: str) -> str:
    """A released model's file, as one of the hub."""
    return f"{hub.PREFIX}{REPOSITORY}/{RELEASED[name]}"


def _check(name: str, path: str) -> None:
    """UserError, and the file is removed, if its SHA-256 is not the one that the hub has told.

    The cache links to a large file by this number; caches without links have kept no number.
    """
    link = pathlib.Path(os.readlink(path) if os.path.islink(path) else "")
    if not re.fullmatch("[0-9a-f]{64}", link.name):
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != link.name:
        (pathlib.Path(path).parent / link).unlink()
        os.unlink(path)
        raise UserError(
            f"{address(name)} came damaged: its SHA-256 begins with {found[:8]}, not "
            f"{link.name[:8]}. It was removed: run the command again"
        )
