"""Weights as one safetensors file, local or in a bucket (`gs://`).

An array's name is its path in the tree, as `params/encoder/...`. The file's metadata hold the
`architecture` of what is saved and, as `checksum`, a CRC-32 of that line and of all arrays with
their names, dtypes and shapes.
"""

import contextlib
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from safetensors import SafetensorError, safe_open

from nvg_jax import arrays, files, sharding
from nvg_jax.errors import UserError

PyTree = Any

SUFFIX = ".safetensors"


def write(path: epath.Path, variables: PyTree, architecture: str) -> None:
    """Writes a pytree of arrays with their dtypes. Every process of a multi-host run calls it.

    Raises UserError if the file cannot be written.
    """
    on_host = arrays.named(sharding.on_host(variables))
    flat = {name: np.asarray(array, order="C") for name, array in on_host.items()}
    checksum = _checksum(architecture, sorted(flat.items()))
    metadata = {"architecture": architecture, "checksum": checksum}
    if jax.process_index() == 0:
        with files.replacing(path) as file:
            file.write(safetensors.numpy.save(flat, metadata))


def read(path: epath.Path, abstract_variables: PyTree, architecture: str) -> PyTree:
    """Reads all arrays, with the dtypes of `abstract_variables` and onto their shardings.

    Every process of a multi-host run reads the whole file. Raises UserError if it is damaged, none
    of ours, or if the architecture, the arrays or their shapes are others.
    """
    wanted, placed = arrays.named(abstract_variables), {}

    def found(file: safe_open) -> Iterator[tuple[str, np.ndarray]]:
        for name in sorted(wanted):
            array = file.get_tensor(name)
            yield name, array
            placed[name] = _place(array.astype(wanted[name].dtype, copy=False), wanted[name])

    with _opened(path) as file:
        metadata = file.metadata()
        arrays.check_architecture(path, architecture, metadata["architecture"])
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        arrays.check_shapes(path, arrays.shapes(wanted), saved)
        if _checksum(architecture, found(file)) != metadata["checksum"]:
            raise _damage(path, "it has changed since it was written")
    return jax.tree.unflatten(
        jax.tree.structure(abstract_variables), [placed[name] for name in wanted]
    )


def architecture(path: epath.Path) -> str:
    """What the file says it holds. Raises UserError if it is none of ours."""
    with _opened(path) as file:
        return file.metadata()["architecture"]


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[safe_open]:
    """The file, or a copy of what is in a bucket, with our metadata."""
    if not path.is_file():
        raise UserError(f"{path} is not a file: name one that --job=export has made")
    with contextlib.ExitStack() as stack:
        try:
            local = path
            if files.is_remote(path):
                copy = stack.enter_context(tempfile.NamedTemporaryFile())
                with path.open("rb") as remote:
                    shutil.copyfileobj(remote, copy)
                copy.flush()
                local = copy.name
            file = stack.enter_context(safe_open(local, framework="numpy"))
        except SafetensorError as error:
            raise _damage(path, str(error)) from error
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
        if not {"architecture", "checksum"} <= (file.metadata() or {}).keys():
            raise UserError(
                f"{path} does not say what it is: name a file that --job=export has made"
            )
        yield file


def _damage(path: epath.Path, why: str) -> UserError:
    return UserError(f"damaged weights: {path} ({why}); make or copy it anew")


def _place(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    if like.sharding is None:
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def _checksum(line: str, named_arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    """Of arrays in the order of their names."""
    checksum = zlib.crc32(line.encode())
    for name, array in named_arrays:
        checksum = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(array.reshape(-1).view(np.uint8), checksum)
    return f"{checksum:08x}"
