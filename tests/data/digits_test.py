import hashlib
import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture(scope="module")
def splits(digits_dir):
    """{split: (grey levels 0..16 [N, 8, 8], labels [N])} as they stand in the files."""
    result = {}
    for split in ("train", "test"):
        decoders = {"image": tfds.decode.SkipDecoding()}
        source = tfds.data_source(
            "digits", split=split, data_dir=digits_dir, download=False, decoders=decoders
        )
        examples = list(source)
        pixels = [np.asarray(Image.open(io.BytesIO(each["image"]))) for each in examples]
        levels = np.round(np.stack(pixels) * (16 / 255)).astype(np.uint8)
        result[split] = levels, np.array([each["label"] for each in examples])
    return result


def _rows(images, labels):
    """One bytes object an example."""
    pairs = zip(images, labels, strict=True)
    return [image.astype(np.uint8).tobytes() + bytes([label]) for image, label in pairs]


def test_every_digit_of_scikit_learn_is_in_one_split_and_in_its_order(splits):
    source = load_digits()
    whole = _rows(source.images, source.target)
    assert sorted(_rows(*splits["train"]) + _rows(*splits["test"])) == sorted(whole)
    for images, labels in splits.values():
        remaining = iter(whole)
        assert all(row in remaining for row in _rows(images, labels))


def test_split_is_stratified_and_fixed(splits):
    counts = {split: np.bincount(labels, minlength=10) for split, (_, labels) in splits.items()}
    assert (counts["train"].sum(), counts["test"].sum()) == (1437, 360)
    expected = (counts["train"] + counts["test"]) * 360 / 1797
    assert np.abs(counts["test"] - expected).max() < 1
    digest = hashlib.sha256(b"".join(_rows(*splits["test"]))).hexdigest()
    assert digest == "b2ea4fea55bdf72394171a27fee5ebfab69ab09ee7944ea1e80e5736412a6ec8"


def test_info_names_licence_and_source(digits_dir):
    info = tfds.builder("digits", data_dir=digits_dir).info
    assert "CC BY 4.0" in info.redistribution_info.license
    assert "Alpaydin" in info.citation
    assert info.features["label"].num_classes == 10
