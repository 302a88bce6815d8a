"""The examples of one split of a TFDS dataset, read and decoded without TensorFlow."""

import bisect
import dataclasses
import functools
import io
import logging
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image

from nvg_jax import pixels
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
        try:
            pictures, label = self._read(index)
        except _UnreadableError:
            # A cut-off file would be named thousands of times: `finish` names it.
            return self._black() | {"label": 0, "skipped": 2 + self._file(index)}
        except UserError as error:
            log.warning("skipped: %s", error)
            return self._black() | {"label": 0, "skipped": 1}
        free = (side - self.image_size for side in pictures["image"].size)
        left, top = (int(rng.integers(count + 1)) for count in free)
        return self._crop(pictures, left, top) | {"label": label, "skipped": 0}

    def finish(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What is left to do with a batch of training examples, in the main process."""
        for number in np.unique(batch["skipped"][batch["skipped"] > 1] - 2):
            _warn_once(f"skipped: {_unreadable(self.files[number])}")
        batch = batch | {"skipped": np.minimum(batch["skipped"], 1)}
        return to_model_types(_fill_skipped(batch))

    def numbered_crop(self, starts: Sequence[int], batch_size: int, seed: int, index: int) -> dict:
        number = starts[index // batch_size] + index % batch_size
        turn, image = divmod(number, len(self))
        return self.training_example(image, np.random.default_rng((seed, turn, image)))

    def evaluation_example(self, index: int) -> dict:
        if index >= len(self):
            return self._black() | {"label": 0, "mask": False}
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
            raise _UnreadableError(_unreadable(self.files[self._file(index)])) from cause
        decoders = {name: tfds.decode.SkipDecoding() for name in self.pictures}
        example = self.features.deserialize_example_np(record, decoders=decoders)
        pictures = {name: self._picture(example, name, index) for name in self.pictures}
        return pictures, example["label"]

    def _file(self, index: int) -> int:
        return bisect.bisect_right(self.ends, index)

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
        width, height = picture.size
        scale_to, shorter = self.shorter_side, min(width, height)
        return picture.resize(
            (scale_to * width // shorter, scale_to * height // shorter), resampling
        )

    def _crop(self, pictures: dict[str, Image.Image], left: int, top: int) -> dict[str, np.ndarray]:
        box = (left, top, left + self.image_size, top + self.image_size)
        return {name: np.asarray(picture.crop(box)) for name, picture in pictures.items()}

    def _black(self) -> dict[str, np.ndarray]:
        size = (self.image_size, self.image_size)
        return {name: np.asarray(Image.new(_PICTURES[name][0], size)) for name in self.pictures}


class _UnreadableError(UserError):
    """A record of a file cannot be read."""


def _unreadable(file: str) -> str:
    return f"{file} is cut off, damaged or missing: copy it anew, or prepare the dataset again"


@functools.cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def _fill_skipped(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Puts the next decodable example of the batch, cyclically, where one was skipped."""
    (decoded,) = np.nonzero(batch["skipped"] == 0)
    count = len(batch["skipped"])
    if len(decoded) == count:
        return batch
    if not len(decoded):
        raise UserError(f"not one image of a batch of {count} can be decoded: see the log")
    rows = decoded[np.searchsorted(decoded, np.arange(count)) % len(decoded)]
    return batch | {"image": batch["image"][rows], "label": batch["label"][rows]}


def to_model_types(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs in the main process: bytes are a quarter of the floats to hand over."""
    others = {
        name: value.astype(np.int32) if value.dtype == np.int64 else value
        for name, value in batch.items()
    }
    return others | {"image": pixels.from_uint8(batch["image"])}
