"""Fashion-MNIST from its four IDX files, where TFDS's download is out of reach."""

import gzip
import hashlib
import math
import pathlib
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from nvg_jax.errors import UserError

_UNSIGNED_BYTES = 8  # IDX's code of the only type that these files hold.


class IdxFile(NamedTuple):
    """What a file of the set holds, and the SHA-256 of that (gzip's headers differ)."""

    shape: tuple[int, ...]
    sha256: str


FILES = {
    "train-images-idx3-ubyte": IdxFile(
        (60_000, 28, 28), "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte": IdxFile(
        (60_000,), "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "t10k-images-idx3-ubyte": IdxFile(
        (10_000, 28, 28), "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "t10k-labels-idx1-ubyte": IdxFile(
        (10_000,), "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
}


class FashionMNIST(tfds.image_classification.FashionMNIST, skip_registration=True):
    """TFDS's builder `fashion_mnist`, but of files in the folder `source`, gzipped or not.

    Raises UserError, before anything is written, for a file that is missing, damaged or of
    another set.
    """

    def __init__(self, source: str, data_dir: str = ""):
        super().__init__(data_dir=data_dir or None)
        self._arrays = {name: _verified(source, name) for name in FILES}

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {"train": self._generate_examples("train"), "test": self._generate_examples("t10k")}

    def _generate_examples(self, prefix: str) -> Iterator[tuple[int, dict]]:
        images = self._arrays[f"{prefix}-images-idx3-ubyte"][..., None]
        labels = self._arrays[f"{prefix}-labels-idx1-ubyte"]
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image, "label": int(label)}


def read_idx(path: pathlib.Path) -> np.ndarray:
    """The uint8 array of an IDX file, which may be gzipped. UserError if it is damaged or none."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "cut off or damaged"
        raise UserError(f"{path} cannot be read ({reason}): copy it anew") from error
    rank = data[3] if len(data) > 3 else 0
    start = 4 + 4 * rank
    if not rank or data[:3] != bytes([0, 0, _UNSIGNED_BYTES]) or len(data) < start:
        raise UserError(f"{path} is no IDX file of unsigned bytes: copy it anew")
    shape = np.frombuffer(data[4:start], ">u4").tolist()
    if len(data) - start != math.prod(shape):
        raise UserError(
            f"{path} holds {len(data) - start:,} bytes of data where its shape, {shape}, needs "
            f"{math.prod(shape):,}: copy it anew"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _verified(source: str, name: str) -> np.ndarray:
    """The array of a file of the set. Raises UserError for another."""
    folder = pathlib.Path(source).expanduser()
    path = next((each for each in (folder / f"{name}.gz", folder / name) if each.is_file()), None)
    if path is None:
        raise UserError(
            f"there is no {name}.gz, nor {name}, in {folder}: --source has to hold the four IDX "
            "files of Fashion-MNIST"
        )
    array, expected = read_idx(path), FILES[name]
    if array.shape != expected.shape:
        raise UserError(
            f"{path} is not Fashion-MNIST's: its shape is {array.shape} and not {expected.shape}"
        )
    header = bytes([0, 0, _UNSIGNED_BYTES, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    if hashlib.sha256(header + array.tobytes()).hexdigest() != expected.sha256:
        raise UserError(
            f"{path} is not Fashion-MNIST's: its SHA-256, unpacked, is not {expected.sha256}: it "
            "is of another set, such as MNIST, or changed"
        )
    return array
