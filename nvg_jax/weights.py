"""Weights for exchange: a directory of `weights/`, written by Orbax, and its `seal`; or one file.

The seal is that of a training's steps (see `checkpoint`). A path that ends in `.safetensors` is a
file (see `weights_file`). Both may be in a bucket (`gs://`); a file that is read also on the hub
(`hf://`, see `hub`).
"""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from nvg_jax import hub, seal, weights_file
from nvg_jax.arrays import absolute, check_architecture, read_arrays
from nvg_jax.distributed import agreed
from nvg_jax.errors import UserError
from nvg_jax.saving_errors import SAVING_ERRORS, reason

PyTree = Any


def save_weights(path: epath.PathLike, variables: PyTree, architecture: str) -> None:
    """Writes a pytree of arrays as weights, which `load_weights` reads.

    Every process of a multi-host run has to call it. A directory is whole once it has its seal;
    what an earlier call could not finish is replaced. Raises UserError if there is anything else,
    or it cannot be written.
    """
    path = absolute(path)
    # One looks for all: another would find what the first to go on has begun.
    if agreed("it is taken" if jax.process_index() == 0 and _is_taken(path) else ""):
        raise UserError(f"{path} exists already: choose another place, or remove it first")
    if path.suffix == weights_file.SUFFIX:
        weights_file.write(path, variables, architecture)
    else:
        _write_directory(path, variables, architecture)
    ocp.multihost.sync_global_processes("weights written")


def _write_directory(directory: epath.Path, variables: PyTree, architecture: str) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            args = ocp.args.PyTreeSave(variables)
            checkpointer.save(directory / "weights", args=args, force=True)
        if jax.process_index() == 0:
            seal.write(directory, architecture)
    except SAVING_ERRORS as error:
        raise UserError(
            f"{directory} cannot be written ({reason(error)}): make room, or choose another place"
        ) from error


def _is_taken(path: epath.Path) -> bool:
    """Whether there is anything but a directory of weights without a seal."""
    if path.suffix == weights_file.SUFFIX or not path.is_dir():
        return path.exists()
    return any(not found.name.startswith("weights") for found in path.iterdir())


def load_weights(path: epath.PathLike, abstract_variables: PyTree, architecture: str) -> PyTree:
    """Reads what `save_weights` has written, given the same line.

    Every process of a multi-host run has to call it. `abstract_variables` is like `abstract_state`
    of `TrainCheckpointer.restore`. Raises UserError if these are no weights, are damaged, or of
    another architecture.
    """
    path = _located(path)
    if path.suffix == weights_file.SUFFIX:
        return weights_file.read(path, abstract_variables, architecture)
    check_architecture(path, architecture, saved_architecture(path))
    if damage := seal.damage(path, architecture, ("weights",)):
        raise _damaged(path, damage)
    return read_arrays(path / "weights", abstract_variables)


def saved_architecture(path: epath.PathLike) -> str:
    """The line that weights were written with. Raises UserError if they are none, or damaged."""
    path = _located(path)
    if path.suffix == weights_file.SUFFIX:
        return weights_file.architecture(path)
    if not (path / seal.NAME).exists() or not (path / "weights").exists():
        raise UserError(
            f"{path} is not a (completely written) weights directory: name one that --job=export "
            "or nvg_jax.interop.convert has made, or a .safetensors file"
        )
    content, damage = seal.read(path)
    if damage:
        raise _damaged(path, damage)
    return content["architecture"]


def _located(path: epath.PathLike) -> epath.Path:
    return absolute(hub.local_file(str(path)) if hub.is_name(path) else path)


def _damaged(path: epath.Path, damage: str) -> UserError:
    return UserError(f"damaged weights: {damage}; make or copy {path} anew")
