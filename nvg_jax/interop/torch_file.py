"""Reads files that PyTorch has saved, without running or importing anything they name."""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from nvg_jax.errors import UserError

# What PyTorch raises for files that are damaged, or that it refuses.
_DAMAGED = (pickle.UnpicklingError, EOFError, OSError, RuntimeError, TypeError, ValueError)


def import_torch() -> ModuleType:
    """PyTorch, which only reading its files needs; UserError if it is not installed."""
    try:
        import torch
    except ImportError:
        raise UserError(
            "reading PyTorch checkpoints needs PyTorch: pip install -r requirements-convert.txt"
        ) from None
    return torch


def read_torch_file(path: str) -> Any:
    """What `torch.save` has written to a file, today's zip archives and the format before them.

    UserError: PyTorch is not installed, or the file is missing, damaged, or names what PyTorch's
    restricted unpickler refuses.
    """
    torch = import_torch()
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        if not zipped:
            return torch.load(path, weights_only=True, map_location="cpu")
        # Beside the weights Lightning keeps what a training needs to go on, in classes of its own
        # and of the trained program. They are read as empty stand-ins.
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_NotRead, name) for name in unknown]):
            return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except _DAMAGED as error:
        refused = str(error).replace("\n", " ")
        raise UserError(f"{path} is not a checkpoint that is safe to read: {refused}") from None


def float_arrays(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a `state_dict`, in float32."""
    torch = import_torch()
    return {
        name: tensor.detach().float().numpy()
        for name, tensor in state_dict.items()
        if isinstance(tensor, torch.Tensor)
    }


class _NotRead:
    """Stands in for a class or function that a checkpoint names; swallows what it is given."""

    def __new__(cls, *args: Any, **kwargs: Any) -> OrderedDict:
        return OrderedDict()  # The one type on which the restricted unpickler allows everything.
