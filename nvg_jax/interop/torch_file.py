"""Reads the tensors of files that PyTorch has saved, by their names, without PyTorch.

Such a file is a pickle beside the numbers of its tensors. What a pickle names can do anything once
it is called, and checkpoints keep much beside tensors: settings, paths, an optimizer's state. So
nothing that it names is looked up; it becomes a stand-in that does nothing. A tensor is recognised
by what would have been called with which arguments, and its numbers are read when it is needed.
"""

import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import Any

import ml_dtypes
import numpy as np

from nvg_jax.errors import UserError

_DTYPES = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
    # Of these only the length is needed, to find what stands behind them.
    "torch.ComplexFloatStorage": np.dtype("V8"),
    "torch.ComplexDoubleStorage": np.dtype("V16"),
    "torch.QInt8Storage": np.dtype("V1"),
    "torch.QUInt8Storage": np.dtype("V1"),
    "torch.QInt32Storage": np.dtype("V4"),
    "torch.storage.UntypedStorage": np.dtype("V1"),
}
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_WITH_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"

# How the files of before PyTorch 1.6 begin, and the version of their format.
_OLD_FORMAT = (0x1950A86A20F9469CFC6C, 1001)


@dataclass(frozen=True)
class _Storage:
    """Numbers that follow each other in a file, of one tensor or of several."""

    path: str
    key: str
    dtype: np.dtype
    size: int
    read: Callable[["_Storage"], bytes]

    def numbers(self) -> np.ndarray:
        """All the numbers `[size]`; UserError if the file is damaged here."""
        try:
            return np.frombuffer(self.read(self), self.dtype, self.size)
        except Exception:  # As many kinds as there are layers of files.
            raise UserError(f"{self.path} is damaged: a tensor cannot be read") from None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; `np.asarray` reads it, anew every time, in float32.

    start, strides: where its numbers are among those of the storage.
    """

    storage: _Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        """ValueError if it is not within its storage."""
        steps = zip(self.shape, self.strides, strict=True)
        end = 0 if 0 in self.shape else self.start + sum((n - 1) * by for n, by in steps) + 1
        if min((self.start, *self.shape, *self.strides)) < 0 or end > self.storage.size:
            raise ValueError("a tensor outside of its storage")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        dtype = np.float32 if dtype is None else dtype
        if 0 in self.shape:
            return np.zeros(self.shape, dtype)
        numbers = self.storage.numbers()[self.start :]
        strides = [by * numbers.itemsize for by in self.strides]
        return np.asarray(np.lib.stride_tricks.as_strided(numbers, self.shape, strides), dtype)


def stored_tensors(path: str, within: str = "") -> dict[str, StoredTensor]:
    """The named tensors that `torch.save` has written to a file, today's format and the old one.

    within: the entry of the file's dict that holds them; '' if they are its entries.

    UserError: the file is missing, damaged, not one of PyTorch's, or has no such tensors.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        contents = (_read_zip if zipped else _read_old_format)(path)
        if within:
            contents = contents.get(within) if isinstance(contents, dict) else None
        if isinstance(contents, dict):  # Below, what a pickle can not have given other methods.
            found = {str(name): _tensor(value) for name, value in dict.items(contents)}
    except Exception:  # A damaged pickle can raise anything.
        raise UserError(
            f"{path} is not a checkpoint of PyTorch, or is damaged: get the file anew"
        ) from None
    if not isinstance(contents, dict):
        raise UserError(f"{path} holds no {within or 'named tensors'}")
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _read_zip(path: str) -> Any:
    archive = zipfile.ZipFile(path)
    names = set(archive.namelist())
    (folder,) = {name[:-8] for name in names if re.fullmatch(r"[^/]*/data\.pkl", name)}
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("numbers of another byte order")

    def read(storage: _Storage) -> bytes:
        return archive.read(f"{folder}data/{storage.key}")  # Compares the checksum, too.

    return _Unpickler(io.BytesIO(archive.read(f"{folder}data.pkl")), path, read).load()


def _read_old_format(path: str) -> Any:
    """Pickles one after the other, and then the storages in the order that the last one names."""
    starts = {}

    def read(storage: _Storage) -> bytes:
        with open(path, "rb") as file:
            file.seek(starts[storage.key])
            return file.read(storage.size * storage.dtype.itemsize)

    with open(path, "rb") as file:
        unpicklers = [_Unpickler(file, path, read) for _ in range(5)]
        *begin, _, contents, keys = (unpickler.load() for unpickler in unpicklers)
        if tuple(begin) != _OLD_FORMAT:
            raise ValueError("another format")
        for storage in (unpicklers[3].storages[key] for key in keys):
            starts[storage.key] = file.seek(8, os.SEEK_CUR)  # Behind the number of numbers.
            end = file.seek(storage.size * storage.dtype.itemsize, os.SEEK_CUR)
        if keys and end > os.path.getsize(path):
            raise EOFError
    return contents


class _Inert(type):
    """A stand-in for what a pickle names and for all that is made of it: takes what it is given.

    It is a class because a pickle may ask a class, and nothing else, for an object.

    source: the name, or the name of what was called.
    arguments: those of the call.
    """

    source: str
    arguments: tuple

    def __call__(cls, *arguments: Any, **_: Any) -> "_Inert":
        return _inert(cls.source, arguments)

    def __setstate__(cls, state: Any) -> None: ...

    def __setitem__(cls, key: Any, value: Any) -> None: ...

    def append(cls, item: Any) -> None: ...

    add = extend = append


class _Made(metaclass=_Inert):
    def __new__(cls, *arguments: Any, **_: Any) -> "_Inert":
        return cls(*arguments)


def _inert(source: str, arguments: tuple = ()) -> _Inert:
    return _Inert("_inert", (_Made,), {"source": source, "arguments": arguments})


class _Unpickler(pickle.Unpickler):
    """Makes plain data, ordered dicts and stand-ins; nothing that is named is ever looked up."""

    def __init__(
        self, file: io.BufferedIOBase, path: str, read: Callable[[_Storage], bytes]
    ) -> None:
        super().__init__(file, encoding="latin-1")  # Strings of Python 2.
        self.path, self.read, self.storages = path, read, {}

    def find_class(self, module: str, name: str) -> type:
        source = f"{module}.{name}"
        return OrderedDict if source == "collections.OrderedDict" else _inert(source)

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # A class with its source, in the old format.
            return pid[1]
        _, kind, key, _, size, *view = pid
        if any(view):
            raise ValueError("a part of a storage")
        storage = _Storage(self.path, key, _DTYPES[kind.source], index(size), self.read)
        return self.storages.setdefault(key, storage)


def _tensor(value: Any) -> StoredTensor | None:
    """The tensor that a pickled value stands for, or None if it is none, or not of real numbers."""
    if not isinstance(value, _Inert):
        return None
    source, arguments = value.source, value.arguments
    if source == _WITH_ATTRIBUTES:
        function, _, arguments, _ = arguments
        source = function.source
    if source in _PARAMETERS:
        return _tensor(arguments[0])
    if source not in _TENSORS or arguments[0].dtype.type is np.void:
        return None
    storage, start, shape, strides = arguments[:4]
    return StoredTensor(storage, index(start), tuple(map(index, shape)), tuple(map(index, strides)))
