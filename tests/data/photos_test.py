import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_sample_image

from nvg_jax.data import photos, prepare

WIDTH, HEIGHT = 640, 427


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("photos")
    prepare.prepare("photos", str(directory))
    return directory


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


@pytest.mark.parametrize(("split", "count"), [("train", 2000), ("test", 200)])
def test_examples_are_the_crops_in_turn(data_dir, split, count):
    sources = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    examples = iter(_read(data_dir, split))
    boxes = [box for boxes in photos.crop_boxes(split, WIDTH, HEIGHT) for box in boxes]
    assert len(boxes) == count
    for index, (box, (png, label)) in enumerate(zip(boxes, examples, strict=True)):
        assert label == index % 2
        expected = sources[label].crop(box).resize((96, 96), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), expected)


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


def test_info_names_classes_licence_and_sources(data_dir):
    info = tfds.builder("photos", data_dir=data_dir).info
    assert info.features["image"].shape == (96, 96, 3)
    assert info.features["label"].names == ["china", "flower"]
    assert "CC BY 2.0" in info.redistribution_info.license
    assert "danielbuechele" in info.citation and "vultilion" in info.citation
