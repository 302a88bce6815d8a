"""Images and files that cannot be read."""

import io
import json
import logging
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from nvg_jax.data import examples, pipeline
from nvg_jax.errors import UserError
from tests.data import tiny
from tests.data.batches import assert_equal, crop_batches, joined, train_batches


@pytest.fixture(autouse=True)
def forget_warnings():
    """Each problem is named once in a process."""
    examples._warn_once.cache_clear()


def test_undecodable_images_are_skipped_named_and_counted(pixels_config, caplog):
    config = pixels_config(train_split="damaged")
    with caplog.at_level(logging.WARNING):
        (batch,) = train_batches(config, 1, batch_size=10)
    assert batch["skipped"].sum() == 3
    for index in (2, 3, 9):
        assert f"damaged[{index}] cannot be decoded" in caplog.text
    labels, counts = np.unique(batch["label"], return_counts=True)
    assert set(labels) == set(range(10)) - {2, 3, 9} and counts.sum() == 10
    for image, label in zip(batch["image"], batch["label"], strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(tiny.PIXELS["damaged"][label])))
        np.testing.assert_array_equal(image, pixels)


def test_skipping_keeps_the_other_rows(pixels_config):
    """A damaged image takes no other out of its place: states stay comparable."""
    config = pixels_config(train_split="damaged")
    (whole,) = train_batches(config, 1, batch_size=10)
    parts = train_batches(config, 2, batch_size=5)
    np.testing.assert_array_equal(whole["skipped"], joined(parts, "skipped"))
    kept = whole["skipped"] == 0
    np.testing.assert_array_equal(whole["label"][kept], joined(parts, "label")[kept])


def test_numbered_crops_pass_over_undecodable_images(pixels_config, caplog):
    config = pixels_config(train_split="damaged")
    (batch,) = crop_batches(config, [10], batch_size=10)
    np.testing.assert_array_equal(np.flatnonzero(batch["skipped"]), [2, 3, 9])
    np.testing.assert_array_equal(batch["label"], [0, 1, 4, 4, 4, 5, 6, 7, 8, 0])
    assert "damaged[9] cannot be decoded" in caplog.text


def test_a_batch_without_one_decodable_image_is_an_error(pixels_config):
    with pytest.raises(UserError, match="not one image of a batch of 4 can be decoded"):
        train_batches(pixels_config(train_split="hopeless"), 1)


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_undecodable_image_stops_evaluation(photos_config, num_workers):
    batches = pipeline.evaluation_batches(photos_config(num_workers=num_workers), "damaged", 2)
    with pytest.raises(UserError) as error:
        list(batches)
    (line,) = str(error.value).splitlines()
    assert line.startswith("image damaged_1.JPEG cannot be decoded")


@pytest.fixture
def sharded(tmp_path, pixels_config):
    """A config of the pixels in three files of four images, and the files."""
    builder = tfds.builder("tiny_pixels", data_dir=tmp_path)
    shards = tfds.download.DownloadConfig(num_shards=3)
    builder.download_and_prepare(download_config=shards, file_format="array_record")
    files = sorted(pathlib.Path(builder.data_dir).glob("*-train.*"))
    assert len(files) == 3
    return pixels_config(data_dir=str(tmp_path)), files


@pytest.mark.parametrize("left", ["one byte less", "half", "the header", "nothing", "no file"])
def test_what_a_cut_off_file_holds_is_skipped_and_counted(sharded, left, caplog):
    config, files = sharded
    whole = train_batches(config, 6)
    content = files[1].read_bytes()
    files[1].unlink()  # It is another file then: the first iterator may still read ahead.
    if left != "no file":
        kept = {"one byte less": -1, "half": len(content) // 2, "the header": 64, "nothing": 0}
        files[1].write_bytes(content[: kept[left]])
    batches = train_batches(config, 6)
    # Not those of other tests' iterators, which may still read ahead.
    warnings = [line for line in caplog.messages if config.data_dir in line]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"skipped: {files[1]} is cut off, damaged or missing")
    for epoch in (batches[:3], batches[3:]):
        assert sum(batch["skipped"].sum() for batch in epoch) == 4
    for batch, expected in zip(batches, whole, strict=True):
        skipped = batch["skipped"] == 1
        np.testing.assert_array_equal(skipped, np.isin(expected["label"], (4, 5, 6, 7)))
        assert not np.isin(batch["label"], (4, 5, 6, 7)).any()
        for name in ("image", "label"):
            np.testing.assert_array_equal(batch[name][~skipped], expected[name][~skipped])
    with pytest.raises(UserError, match=f"^{files[1]} is cut off, damaged or missing: copy it"):
        list(pipeline.evaluation_batches(config, "train", 4))
    assert len(list(pipeline.evaluation_batches(config, "train[:4]", 4))) == 1


def test_records_with_changed_bytes_are_skipped_alone(sharded, caplog):
    config, files = sharded
    content = bytearray(files[2].read_bytes())
    place = content.index(b"IDAT")
    content[place : place + 4] = b"ITAD"
    files[2].write_bytes(bytes(content))
    batches = train_batches(config, 3)
    assert sum(batch["skipped"].sum() for batch in batches) == 1
    assert len({int(label) for batch in batches for label in batch["label"]}) == 11
    assert caplog.text.count(f"{files[2]} is cut off, damaged or missing") == 1


def _edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "has no dataset_info.json, or one without splits: copy it"),
        (lambda path: _edit(path, splits=[]), "has no dataset_info.json, or one without splits"),
        (
            lambda path: os.truncate(path, 200),
            r"dataset_info.json, features.json or metadata.json is damaged \(",
        ),
        (lambda path: os.truncate(path, 0), "is damaged"),
        (lambda path: path.write_text("[1, 2]"), "is damaged"),
        (lambda path: path.write_bytes(b"\xff\xe2" * 9), "is damaged"),
        (lambda path: _edit(path, splits="x"), "is damaged"),
        (lambda path: _edit(path, version="7.0.0"), "do not match. .* Proto version: 7.0.0$"),
        (lambda path: _edit(path, fileFormat="paper"), "'paper' is not a valid FileFormat$"),
    ],
)
def test_damaged_descriptions_are_one_line(sharded, spoil, message):
    config, files = sharded
    spoil(files[0].parent / "dataset_info.json")
    for call in (pipeline.num_examples, pipeline.published_num_examples):
        with pytest.raises(UserError, match=message) as error:
            call(config, "train")
        (line,) = str(error.value).splitlines()
        assert line.startswith(f"cannot load dataset 'tiny_pixels' in {config.data_dir}: ")


def test_damaged_features_of_what_only_files_describe_are_one_line(tmp_path, digits_dir):
    """A dataset that TFDS does not know by name is read from its files alone."""
    shutil.copytree(f"{digits_dir}/digits/1.0.0", tmp_path / "mine" / "1.0.0")
    _edit(tmp_path / "mine" / "1.0.0" / "dataset_info.json", name="mine")
    assert pipeline.load_builder("mine", str(tmp_path)).info.splits["test"].num_examples == 360
    (tmp_path / "mine" / "1.0.0" / "features.json").write_text("{")
    with pytest.raises(
        UserError, match="features.json or metadata.json is damaged .Expecting property name"
    ):
        pipeline.load_builder("mine", str(tmp_path))


@pytest.mark.slow
def test_workers_name_a_cut_off_file_once(sharded, caplog):
    config, files = sharded
    os.truncate(files[0], 100)
    expected = train_batches(config, 6)
    examples._warn_once.cache_clear()
    caplog.clear()
    config.num_workers = 2
    assert_equal(train_batches(config, 6), expected)
    assert len([line for line in caplog.messages if config.data_dir in line]) == 1
