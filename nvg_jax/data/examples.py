"""The examples of one split of a TFDS dataset, read and decoded without TensorFlow."""

import bisect
import dataclasses
import functools
import io
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image

from nvg_jax.data.stream import Order
from nvg_jax.errors import UserError

log = logging.getLogger(__name__)

# Mode and resampling of the features that are pictures. Between two segments there is nothing.
_PICTURES = {
    "image": ("RGB", Image.Resampling.LANCZOS),
    "segmentation_mask": ("L", Image.Resampling.NEAREST),
}

# What Pillow raises for damaged files of the formats it reads.
_DECODING_ERRORS = (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError)


@dataclasses.dataclass(frozen=True)
class Examples:
    """Random access to the examples of a split.

    It holds the record files and not the TFDS source around them, because that one pickles
    its builder along, which the worker processes could not always import.
    """

    records: ArrayRecordDataSource
    files: tuple[str, ...]
    ends: tuple[int, ...]  # Of each file, how many records it and those before it hold.
    features: tfds.features.FeaturesDict
    split: str
    image_size: int
    shorter_side: int

    def __len__(self) -> int:
        return len(self.records)

    @property
    def pictures(self) -> list[str]:
        return [name for name in _PICTURES if name in self.features]

    def training_example(self, index: int, rng: np.random.Generator) -> dict:
        """A random crop; black, with what is wrong as its `problem`, where there is no image."""
        try:
            pictures, label = self._read(index)
        except UserError as error:
            return self._black() | {"problem": str(error)}
        free = (side - self.image_size for side in pictures["image"].size)
        left, top = (int(rng.integers(count + 1)) for count in free)
        return self._crop(pictures, left, top) | {"label": label, "problem": ""}

    def numbered_crop(self, starts: Sequence[int], order: Order, index: int) -> dict:
        number = starts[index // order.batch_size] + index % order.batch_size
        turn, image = divmod(number, len(self))
        return self.training_example(image, np.random.default_rng((order.seed, turn, image)))

    def evaluation_example(self, index: int) -> dict:
        """The center crop, or a black one past the end."""
        if index >= len(self):
            return self._black() | {"mask": False}
        pictures, label = self._read(index)
        left, top = ((side - self.image_size) // 2 for side in pictures["image"].size)
        return self._crop(pictures, left, top) | {"label": label, "mask": True}

    def _read(self, index: int) -> tuple[dict[str, Image.Image], int]:
        """The pictures, resized, and the label. Raises UserError if one cannot be had."""
        try:
            record, cause = self.records[index], None
        except RuntimeError as error:  # Of whatever is wrong with the file.
            record, cause = b"", error
        if not record:  # Cut off at some places, a file reads as if its records were empty.
            raise UserError(
                f"{self.files[bisect.bisect_right(self.ends, index)]} is cut off, damaged or "
                "missing: copy it anew, or prepare the dataset again"
            ) from cause
        decoders = {name: tfds.decode.SkipDecoding() for name in self.pictures}
        example = self.features.deserialize_example_np(record, decoders=decoders)
        pictures = {name: self._picture(example, name, index) for name in self.pictures}
        return pictures, example["label"]

    def _picture(self, example: dict, name: str, index: int) -> Image.Image:
        mode, resampling = _PICTURES[name]
        try:
            with Image.open(io.BytesIO(example[name])) as encoded:
                picture = encoded.convert(mode)
        except _DECODING_ERRORS as error:
            file_name = example.get("file_name", b"").decode(errors="replace")
            raise UserError(
                f"{name} {file_name or f'{self.split}[{index}]'} cannot be decoded "
                f"({type(error).__name__}): replace it and prepare the dataset again"
            ) from error
        shorter = min(picture.size)
        size = [self.shorter_side * side // shorter for side in picture.size]
        return picture.resize(size, resampling)

    def _crop(self, pictures: dict[str, Image.Image], left: int, top: int) -> dict[str, np.ndarray]:
        box = (left, top, left + self.image_size, top + self.image_size)
        return {name: np.asarray(picture.crop(box)) for name, picture in pictures.items()}

    def _black(self) -> dict[str, Any]:
        size = (self.image_size, self.image_size)
        black = {name: Image.new(_PICTURES[name][0], size) for name in self.pictures}
        return self._crop(black, 0, 0) | {"label": 0}


@functools.cache
def _warn_once(problem: str) -> None:
    log.warning("skipped: %s", problem)


def fill_skipped(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Puts the next example of the batch, cyclically, where one has a problem, which is logged.

    Each is named once: a cut-off file would be thousands of times. UserError if none is left.
    """
    skipped = batch["problem"] != ""
    for problem in np.unique(batch["problem"][skipped]):
        _warn_once(str(problem))
    (whole,) = np.nonzero(~skipped)
    count = len(skipped)
    if not len(whole):
        raise UserError(f"not one image of a batch of {count} can be decoded: see the log")
    rows = whole[np.searchsorted(whole, np.arange(count)) % len(whole)]
    filled = {name: batch[name][rows] for name in ("image", "label")}
    return to_model_types(filled | {"skipped": skipped.astype(np.int32)})


def to_model_types(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return batch | {"label": batch["label"].astype(np.int32)}
