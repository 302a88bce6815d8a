import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_sample_image

from nvg_jax.data import photos, prepare

WIDTH, HEIGHT = 640, 427


def _prepare(directory):
    assert prepare.main(["photos", f"--data_dir={directory}"]) == 0
    return directory


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return _prepare(tmp_path_factory.mktemp("photos"))


def _read(data_dir, split):
    """(PNG bytes, label) of each example in the order of the files."""
    decoders = {"image": tfds.decode.SkipDecoding()}
    source = tfds.data_source(
        "photos", split=split, data_dir=data_dir, download=False, decoders=decoders
    )
    return [(example["image"], int(example["label"])) for example in source]


def _source_pixels(split):
    """Which pixels of each photograph a split is made of."""
    used = np.zeros((2, HEIGHT, WIDTH), bool)
    for boxes in photos.crop_boxes(split, WIDTH, HEIGHT):
        for label, (left, upper, right, lower) in enumerate(boxes):
            used[label, upper:lower, left:right] = True
    return used


@pytest.mark.parametrize("split", ["train", "test"])
def test_examples_are_the_crops_in_turn(data_dir, split):
    sources = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    examples = iter(_read(data_dir, split))
    for boxes in photos.crop_boxes(split, WIDTH, HEIGHT):
        for expected_label, box in enumerate(boxes):
            png, label = next(examples)
            expected = sources[label].crop(box).resize((96, 96), Image.Resampling.LANCZOS)
            assert label == expected_label
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), expected)
    assert next(examples, None) is None


def test_sizes(data_dir):
    info = tfds.builder("photos", data_dir=data_dir).info
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        "train": 2000,
        "test": 200,
    }
    assert info.features["image"].shape == (96, 96, 3)
    assert info.features["label"].names == ["china", "flower"]


def test_boxes_are_squares_of_every_size():
    for split, largest in (("train", 427), ("test", 160)):
        boxes = np.reshape(photos.crop_boxes(split, WIDTH, HEIGHT), (-1, 4))
        sides = boxes[:, 2:] - boxes[:, :2]
        np.testing.assert_array_equal(sides[:, 0], sides[:, 1])
        assert 96 <= sides.min() < 100 and largest - 4 < sides.max() <= largest
        assert len(set(map(tuple, boxes))) > 0.95 * len(boxes)


def test_splits_share_no_pixel():
    train, test = _source_pixels("train"), _source_pixels("test")
    assert not (train & test).any()
    assert train.mean() > 0.7 and test.mean() > 0.2


@pytest.mark.slow
def test_writing_twice_gives_the_same(data_dir, tmp_path):
    again = _prepare(tmp_path)
    for split in ("train", "test"):
        assert _read(again, split) == _read(data_dir, split)


def test_info_names_licence_and_sources(data_dir):
    info = tfds.builder("photos", data_dir=data_dir).info
    assert "CC BY 2.0" in info.redistribution_info.license
    assert "danielbuechele" in info.citation and "vultilion" in info.citation
