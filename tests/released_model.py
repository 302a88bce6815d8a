"""A small stand-in for a released model: the values of its config, and files as PyTorch's."""

import collections
import io
import pickle
import re
import sys
import types
import zipfile
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np

StateDict = Mapping[str, np.ndarray]


def config_values(golden_tokenizer: Any, golden_generator: Any) -> dict[str, Any]:
    """What the golden generator and its tokenizer change in the config of a released model."""
    sizes = golden_tokenizer.arrays | golden_generator.arrays
    depth, multipliers = int(sizes["config.depth"]), tuple(map(int, sizes["config.ch_mult"]))
    grid = golden_generator.arrays["latent"].shape[-1]
    return {
        "data.num_classes": int(sizes["config.num_classes"]),
        "data.image_size": 2 ** (len(multipliers) - 1) * grid,
        "tokenizer.model.width": int(sizes["config.ch"]),
        "tokenizer.model.multipliers": multipliers,
        "tokenizer.model.num_blocks": int(sizes["config.num_res_blocks"]),
        "tokenizer.model.vocab_size": int(sizes["config.vocab"]),
        "generator.model.depth": depth,
        "generator.model.content_width": 64 * depth,
        "generator.model.content_heads": depth,
        "generator.model.structure_width": 32 * depth,
        "generator.model.structure_heads": depth // 2,
    }


def tokenizer_dict(golden_generator_tokenizer: Any) -> StateDict:
    """The tensors of the tokenizer under the golden generator."""
    tensors = golden_generator_tokenizer.state_dict
    return {name: x for name, x in tensors.items() if not name.startswith("nvgformer.")}


def generator_dict(golden_generator: Any, golden_generator_tokenizer: Any) -> StateDict:
    """The golden generator, which carries its tokenizer."""
    tokenizer = tokenizer_dict(golden_generator_tokenizer)
    carried = {f"first_stage_model.{name}": x for name, x in tokenizer.items()}
    return golden_generator.state_dict | carried


def of_fewer_positions(generator: StateDict, last_stage: int) -> StateDict:
    """The generator, and the tokenizer that it carries, for 2^last_stage positions: their first
    rows."""
    wanted = {
        "content_start_embed": (1, 2**last_stage),
        "content_stage_embed.weight": (last_stage + 1,),
        "structure_stage_embed.weight": (last_stage - 1,),
        "structure_embed.weight": (None, last_stage),
        "structure_head.linear.weight": (last_stage,),
        "structure_head.linear.bias": (last_stage,),
        "scale_factors": (last_stage + 2,),
    }
    found = {}
    for name, tensor in generator.items():
        if (refiner := re.search(r"quant_resi\.(\d+)", name)) and int(refiner[1]) > last_stage:
            continue
        lengths = wanted.get(name.removeprefix("nvgformer."), ())
        found[name] = np.asarray(tensor)[tuple(map(slice, lengths))]
    return found


def checkpoint(state_dict: StateDict) -> bytes:
    """A file as `torch.save({'state_dict': ...})` writes it, in float32, without PyTorch."""
    pickled, archive = io.BytesIO(), io.BytesIO()
    tensors = {
        name: _Tensor(key, np.asarray(x)) for key, (name, x) in enumerate(state_dict.items())
    }
    with mock.patch.dict(sys.modules, _MODULES):
        _Pickler(pickled, protocol=2).dump({"state_dict": tensors})
    with zipfile.ZipFile(archive, "w") as opened:
        for name, content in (
            ("data.pkl", pickled.getvalue()),
            ("byteorder", b"little"),
            *((f"data/{x.key}", x.array.astype("<f4").tobytes()) for x in tensors.values()),
            ("version", b"3\n"),
        ):
            opened.writestr(f"archive/{name}", content)
    return archive.getvalue()


class FloatStorage:
    __module__ = "torch"


def _rebuild_tensor_v2(*arguments: Any) -> None: ...


_rebuild_tensor_v2.__module__ = "torch._utils"
_MODULES = {name: types.ModuleType(name) for name in ("torch", "torch._utils")}
_MODULES["torch"].FloatStorage = FloatStorage
_MODULES["torch._utils"]._rebuild_tensor_v2 = _rebuild_tensor_v2


class _Tensor:
    """A tensor as its pickle names it; the numbers lie beside that, in `data/key`."""

    def __init__(self, key: int, array: np.ndarray):
        self.key, self.array = key, array

    def __reduce__(self):
        strides = np.cumprod((1, *self.array.shape[:0:-1]))[::-1][: self.array.ndim]
        view = (0, self.array.shape, tuple(map(int, strides)), False, collections.OrderedDict())
        return _rebuild_tensor_v2, (_Storage(self), *view)


class _Storage:
    def __init__(self, tensor: _Tensor):
        self.pid = ("storage", FloatStorage, str(tensor.key), "cpu", tensor.array.size)


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> tuple | None:
        return value.pid if isinstance(value, _Storage) else None
