"""Datasets for the tests, really prepared: the digits by the command, small ones through TFDS."""

import dataclasses
import io
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

GARBAGE = b"\x89PNG\r\n\x1a\n but nothing more"


def encoded_photo(index: int) -> bytes:
    """A JPEG as ImageNet has them: of any shape, now and then grey or CMYK."""
    rng = np.random.default_rng(index)
    width, height = 40 + 7 * index, 70 - 4 * index
    pixels = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    image = image.convert({3: "L", 5: "CMYK"}.get(index, "RGB"))
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def encoded_pixels(index: int) -> bytes:
    """A PNG of 8 x 8 random pixels."""
    pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
    return png(Image.fromarray(pixels))


def masked_photo(index: int) -> tuple[Image.Image, Image.Image]:
    """A picture of any shape, black but for white blocks, and a mask with a number for each."""
    rng = np.random.default_rng(index)
    rows, columns = 5 + index, 8 - index
    numbers = rng.integers(1, 256, (rows, columns), np.uint8) * rng.integers(0, 2, (rows, columns))
    mask = Image.fromarray(np.kron(numbers, np.ones((10, 10))).astype(np.uint8))
    return mask.point(lambda number: 255 * (number > 0)).convert("RGB"), mask


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


PHOTOS = {
    "train": [encoded_photo(index) for index in range(8)],
    "validation": [encoded_photo(index) for index in range(7)],
    "damaged": [encoded_photo(0), encoded_photo(1)[:300], encoded_photo(2)],
}
PIXELS = {
    "train": [encoded_pixels(index) for index in range(12)],
    "damaged": [GARBAGE if index in (2, 3, 9) else encoded_pixels(index) for index in range(10)],
    "hopeless": [GARBAGE] * 4,
}
MASKED = {
    "test": [tuple(map(png, masked_photo(index))) for index in range(5)],
    "damaged": [tuple(map(png, masked_photo(0))), (png(masked_photo(1)[0]), GARBAGE)],
}


class TinyPhotos(tfds.core.GeneratorBasedBuilder):
    """The layout of imagenet2012: JPEGs of any shape, a label, and a file name."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=8),
            "file_name": tfds.features.Text(),
        }
        return _info(self, features)

    def _split_generators(self, dl_manager: object) -> dict:
        return {split: self._generate_examples(split) for split in PHOTOS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index, data in enumerate(PHOTOS[split]):
            name = f"{split}_{index}.JPEG"
            yield index, {"image": io.BytesIO(data), "label": index, "file_name": name}


class TinyPixels(tfds.core.GeneratorBasedBuilder):
    """PNGs and labels, as most small datasets."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=12),
        }
        return _info(self, features)

    def _split_generators(self, dl_manager: object) -> dict:
        return {split: self._generate_examples(split) for split in PIXELS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index, data in enumerate(PIXELS[split]):
            yield index, {"image": io.BytesIO(data), "label": index}


class TinyMasked(tfds.core.GeneratorBasedBuilder):
    """PNGs, labels, and masks as TFDS calls them."""

    VERSION = tfds.core.Version("1.0.0")
    MASK_CHANNELS = 1

    def _info(self) -> tfds.core.DatasetInfo:
        mask_shape = (None, None, self.MASK_CHANNELS)
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=8),
            "segmentation_mask": tfds.features.Image(shape=mask_shape, encoding_format="png"),
        }
        return _info(self, features)

    def _split_generators(self, dl_manager: object) -> dict:
        return {split: self._generate_examples(split) for split in MASKED}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index, (image, mask) in enumerate(MASKED[split]):
            pictures = {"image": io.BytesIO(image), "segmentation_mask": io.BytesIO(mask)}
            yield index, pictures | {"label": index}


class TinyColourMasked(TinyMasked):
    """Masks of three channels are none."""

    MASK_CHANNELS = 3


class TinyUnlabelled(tfds.core.GeneratorBasedBuilder):
    """Images alone."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(self, {"image": tfds.features.Image(encoding_format="png")})

    def _split_generators(self, dl_manager: object) -> dict:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        yield 0, {"image": io.BytesIO(encoded_pixels(0))}


def _info(builder: tfds.core.DatasetBuilder, features: dict) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=builder, features=tfds.features.FeaturesDict(features), disable_shuffling=True
    )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A folder of prepared datasets and what was written into them."""

    data_dir: pathlib.Path
    photos: dict[str, list[bytes]]
    pixels: dict[str, list[bytes]]
    masked: dict[str, list[tuple[bytes, bytes]]]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    data_dir = tmp_path_factory.mktemp("tiny")
    for builder in (TinyPhotos, TinyPixels, TinyMasked, TinyColourMasked, TinyUnlabelled):
        builder(data_dir=data_dir).download_and_prepare(file_format="array_record")
    return Prepared(data_dir, PHOTOS, PIXELS, MASKED)


@pytest.fixture(scope="session")
def tfrecord_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Where tiny_pixels stands in TFDS's default format, which cannot be read at random."""
    data_dir = tmp_path_factory.mktemp("tfrecord")
    TinyPixels(data_dir=data_dir).download_and_prepare(file_format="tfrecord")
    return data_dir


@dataclasses.dataclass(frozen=True)
class PreparedDigits:
    data_dir: pathlib.Path
    command: subprocess.CompletedProcess


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> PreparedDigits:
    """The digits as the command of the README prepares them."""
    data_dir = tmp_path_factory.mktemp("digits")
    command = subprocess.run(
        [sys.executable, "-m", "nvg_jax.data.prepare", "digits", f"--data_dir={data_dir}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert command.returncode == 0, command.stderr
    return PreparedDigits(data_dir, command)


@pytest.fixture
def photos_config(tiny: Prepared) -> Callable[..., ConfigDict]:
    return _config_maker(tiny.data_dir, "tiny_photos", num_classes=8)


@pytest.fixture
def pixels_config(tiny: Prepared) -> Callable[..., ConfigDict]:
    """Crops are the whole 8 x 8 image."""
    return _config_maker(
        tiny.data_dir, "tiny_pixels", num_classes=12, image_size=8, resize_ratio=1.0
    )


@pytest.fixture
def masked_config(tiny: Prepared) -> Callable[..., ConfigDict]:
    return _config_maker(tiny.data_dir, "tiny_masked", num_classes=8)


@pytest.fixture
def digits_config(digits: PreparedDigits) -> Callable[..., ConfigDict]:
    return _config_maker(digits.data_dir, "digits", num_classes=10)


def _config_maker(data_dir: pathlib.Path, dataset: str, **defaults: object) -> Callable:
    fields = {
        "dataset": dataset,
        "data_dir": str(data_dir),
        "train_split": "train",
        "image_size": 16,
        "resize_ratio": 1.125,
        "num_workers": 0,
    }
    return lambda **changes: ConfigDict(fields | defaults | changes)
