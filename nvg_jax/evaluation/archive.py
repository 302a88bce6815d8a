"""Images in `.npz` files, in the format of the ADM evaluation suite: `arr_0` uint8 [N, H, W, 3]
the images, `arr_1` their classes."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from typing import BinaryIO, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8

from nvg_jax import files
from nvg_jax.errors import UserError
from nvg_jax.saving_errors import reason


class Samples(NamedTuple):
    """Samples and, where they are known, the classes that were asked for."""

    images: UInt8[np.ndarray, "N height width 3"]
    class_ids: Int[np.ndarray, "N"] | None


def load_samples(path: epath.PathLike, image_size: int) -> Samples:
    """The samples in a file; UserError if it holds no images of this size, or other labels than a
    class for each."""
    arrays = load(path, image_size)
    if "arr_0" not in arrays:
        raise UserError(f"{path} holds no samples: it has no array arr_0")
    images, class_ids = arrays["arr_0"], arrays.get("arr_1")
    if class_ids is not None:
        _check_classes(class_ids, len(images), path)
    return Samples(images, class_ids)


def save_samples(path: epath.PathLike, samples: Samples) -> None:
    with files.replacing(path) as file:
        np.savez(file, *(array for array in samples if array is not None))


def load(path: epath.PathLike, image_size: int) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, none of which is unpickled. Images stay on the disk.

    UserError if the file cannot be read, or its `arr_0` is not images of this size.
    """
    try:
        with epath.Path(path).open("rb") as file:
            arrays = _arrays(file) if zipfile.is_zipfile(file) else None
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from None
    except Exception as error:  # Of a damaged archive, zipfile and NumPy raise anything.
        raise UserError(f"{path} is no .npz file of arrays, or damaged: {reason(error)}") from None
    if arrays is None:
        raise UserError(f"{path} is no .npz file, as np.savez writes them, or damaged")
    if "arr_0" in arrays:
        _check_images(arrays["arr_0"], image_size, path)
    return arrays


def _arrays(file: BinaryIO) -> dict[str, np.ndarray]:
    """All arrays of an archive, `arr_0` in a file without a name."""
    archive = np.load(file, allow_pickle=False)
    arrays = {name: archive[name] for name in archive if name != "arr_0"}
    if "arr_0" in archive:
        with archive.zip.open("arr_0.npy") as member, tempfile.NamedTemporaryFile() as copy:
            shutil.copyfileobj(member, copy)
            copy.flush()
            arrays["arr_0"] = np.load(copy.name, mmap_mode="r")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # NumPy gives the bytes of other files as they are.
            raise ValueError(f"{name} is no array")
    return arrays


def _check_images(images: np.ndarray, image_size: int, path: epath.PathLike) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise UserError(
            f"arr_0 of {path} is {images.dtype} {list(images.shape)}: it has to be images, uint8 "
            "[N, H, W, 3]"
        )
    height, width = images.shape[1:3]
    if (height, width) != (image_size, image_size):
        raise UserError(
            f"the images in {path} are {width} x {height} pixels and the model's "
            f"{image_size} x {image_size}: use a batch of the same resolution"
        )


def _check_classes(class_ids: np.ndarray, num_images: int, path: epath.PathLike) -> None:
    found = f"arr_1 of {path} is {class_ids.dtype} {list(class_ids.shape)}"
    if class_ids.dtype.kind not in "iu" or class_ids.ndim != 1:
        raise UserError(f"{found}: it has to be the images' classes, whole numbers [N]")
    if len(class_ids) != num_images:
        raise UserError(f"{found}: it has to be a class for each of the {num_images} images")
    if class_ids.min() < 0:
        raise UserError(f"arr_1 of {path} has class {class_ids.min()}: classes count from 0")
