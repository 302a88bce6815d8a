"""Images in `.npz` files, in the format of the ADM evaluation suite: `arr_0` uint8 [N, H, W, 3]
the images, `arr_1` their classes."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8

from nvg_jax import files
from nvg_jax.errors import UserError


class Samples(NamedTuple):
    """Samples and, where they are known, the classes that were asked for."""

    images: UInt8[np.ndarray, "N height width 3"]
    class_ids: Int[np.ndarray, "N"] | None


def load_samples(path: epath.PathLike, image_size: int) -> Samples:
    """The samples in a file; UserError if it holds no images of this size."""
    arrays = load(path, image_size)
    if "arr_0" not in arrays:
        raise UserError(f"{path} holds no samples: it has no array arr_0")
    return Samples(arrays["arr_0"], arrays.get("arr_1"))


def save_samples(path: epath.PathLike, samples: Samples) -> None:
    with files.replacing(path) as file:
        np.savez(file, samples.images, samples.class_ids)


def load(path: epath.PathLike, image_size: int) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, none of which is unpickled. Images stay on the disk.

    UserError if the file cannot be read, or its `arr_0` is not images of this size.
    """
    try:
        with epath.Path(path).open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise UserError(f"{path} is no .npz file: it holds a single array, without a name")
            arrays = {name: archive[name] for name in archive if name != "arr_0"}
            if "arr_0" in archive:
                with archive.zip.open("arr_0.npy") as member, tempfile.NamedTemporaryFile() as copy:
                    shutil.copyfileobj(member, copy)
                    copy.flush()
                    arrays["arr_0"] = np.load(copy.name, mmap_mode="r")
                _check_images(arrays["arr_0"], image_size, path)
            return arrays
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no .npz file: {' '.join(str(error).split())}") from None


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
