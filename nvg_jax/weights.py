"""Weights for exchange: a directory of `weights/`, written by Orbax, and its `seal`.

The seal is that of a training's steps (see `checkpoint`). Directories may be in a bucket (`gs://`).
"""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from nvg_jax import seal
from nvg_jax.arrays import absolute, read_arrays
from nvg_jax.distributed import agreed
from nvg_jax.errors import UserError
from nvg_jax.saving_errors import SAVING_ERRORS, reason, said_once

PyTree = Any


def save_weights(directory: epath.PathLike, variables: PyTree, architecture: str) -> None:
    """Writes a pytree of arrays as a weights directory, which `load_weights` reads.

    Every process of a multi-host run has to call it. It is whole once it has its seal; what an
    earlier call could not finish is replaced. Raises UserError if the directory exists and holds
    anything else, or cannot be written.
    """
    directory = absolute(directory)
    # One looks for all: another would find what the first to go on has begun.
    if agreed("it is taken" if jax.process_index() == 0 and _is_taken(directory) else ""):
        raise UserError(f"{directory} exists already: choose another place, or remove it first")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with said_once(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            args = ocp.args.PyTreeSave(variables)
            checkpointer.save(directory / "weights", args=args, force=True)
        if jax.process_index() == 0:
            seal.write(directory, architecture)
    except SAVING_ERRORS as error:
        raise UserError(
            f"{directory} cannot be written ({reason(error)}): make room, or choose another place"
        ) from error
    ocp.multihost.sync_global_processes("weights sealed")


def _is_taken(directory: epath.Path) -> bool:
    """Whether there is anything but weights without a seal."""
    if not directory.is_dir():
        return directory.exists()
    return any(not path.name.startswith("weights") for path in directory.iterdir())


def load_weights(
    directory: epath.PathLike, abstract_variables: PyTree, architecture: str
) -> PyTree:
    """Reads a directory that `save_weights` has written, given the same line.

    Every process of a multi-host run has to call it. `abstract_variables` is like `abstract_state`
    of `TrainCheckpointer.restore`. Raises UserError if this is no weights directory, is damaged, or
    of another architecture.
    """
    directory = absolute(directory)
    if not (directory / seal.NAME).exists() or not (directory / "weights").exists():
        raise UserError(
            f"{directory} is not a (completely written) weights directory: name one that "
            "--job=export or nvg_jax.interop.convert has made"
        )
    if damage := seal.damage(directory, architecture, ("weights",)):
        raise UserError(f"damaged weights: {damage}; make or copy {directory} anew")
    return read_arrays(directory / "weights", abstract_variables)
