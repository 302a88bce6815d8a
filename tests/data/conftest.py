"""Datasets for the tests, really prepared."""

import pathlib
from collections.abc import Callable

import pytest
from ml_collections import ConfigDict

from tests.data import tiny


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    data_dir = tmp_path_factory.mktemp("tiny")
    for builder in tiny.BUILDERS:
        builder(data_dir=data_dir).download_and_prepare(file_format="array_record")
    return data_dir


@pytest.fixture(scope="session")
def tfrecord_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Where tiny_pixels stands in TFDS's default format, which cannot be read at random."""
    data_dir = tmp_path_factory.mktemp("tfrecord")
    tiny.TinyPixels(data_dir=data_dir).download_and_prepare(file_format="tfrecord")
    return data_dir


@pytest.fixture
def photos_config(tiny_dir: pathlib.Path) -> Callable[..., ConfigDict]:
    return _config_maker(tiny_dir, "tiny_photos", num_classes=8)


@pytest.fixture
def pixels_config(tiny_dir: pathlib.Path) -> Callable[..., ConfigDict]:
    """Crops are the whole 8 x 8 image."""
    return _config_maker(tiny_dir, "tiny_pixels", num_classes=12, image_size=8, resize_ratio=1.0)


@pytest.fixture
def masked_config(tiny_dir: pathlib.Path) -> Callable[..., ConfigDict]:
    return _config_maker(tiny_dir, "tiny_masked", num_classes=8)


@pytest.fixture
def digits_config(digits_dir: str) -> Callable[..., ConfigDict]:
    return _config_maker(digits_dir, "digits", num_classes=10)


def _config_maker(data_dir: pathlib.Path | str, dataset: str, **defaults: object) -> Callable:
    fields = {
        "dataset": dataset,
        "data_dir": str(data_dir),
        "train_split": "train",
        "image_size": 16,
        "resize_ratio": 1.125,
        "num_workers": 0,
    }
    return lambda **changes: ConfigDict(fields | defaults | changes)
