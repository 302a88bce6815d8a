import contextlib
import io
import itertools
import json
import logging
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nvg_jax.data import examples, pipeline
from nvg_jax.errors import UserError

_LAW = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


def _take(config, count, *, state=None, **options):
    """The first batches from the start or from a state."""
    options = {"batch_size": 4, "seed": 0} | options
    with contextlib.closing(pipeline.train_iterator(config, **options)) as iterator:
        if state is not None:
            iterator.set_state(state)
        return list(itertools.islice(iterator, count))


def _state_after(config, count, **options):
    """Through JSON, as checkpoints keep it."""
    options = {"batch_size": 4, "seed": 0} | options
    with contextlib.closing(pipeline.train_iterator(config, **options)) as iterator:
        for _ in range(count):
            next(iterator)
        return json.loads(json.dumps(iterator.get_state()))


def _assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def _rows(batches):
    """One bytes object an example, to count examples as a multiset."""
    return [
        image.tobytes() + label.tobytes()
        for batch in batches
        for image, label in zip(batch["image"], batch["label"], strict=True)
    ]


def _evaluated_rows(config, split):
    batches = list(pipeline.evaluation_batches(config, split, 64))
    mask = np.concatenate([batch["mask"] for batch in batches])
    return list(itertools.compress(_rows(batches), mask))


def _resized(encoded, shorter_side):
    """Straight from Pillow: shorter side to `shorter_side`, the other in proportion, Lanczos."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    size = [side * shorter_side // min(image.size) for side in image.size]
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def test_batches_have_the_types_of_the_model(photos_config):
    (batch,) = _take(photos_config(), 1)
    assert {name: (value.dtype, value.shape) for name, value in batch.items()} == {
        "image": (np.float32, (4, 16, 16, 3)),
        "label": (np.int32, (4,)),
        "skipped": (np.int32, (4,)),
    }
    batch = next(iter(pipeline.evaluation_batches(photos_config(), "validation", 4)))
    assert {name: (value.dtype, value.shape) for name, value in batch.items()} == {
        "image": (np.float32, (4, 16, 16, 3)),
        "label": (np.int32, (4,)),
        "mask": (np.bool_, (4,)),
    }


def test_grey_digits_come_as_rgb_in_the_whole_range(digits_config):
    config = digits_config(image_size=8, resize_ratio=1.0)
    batch = next(iter(pipeline.evaluation_batches(config, "test", 360)))
    image = batch["image"]
    np.testing.assert_array_equal(image, np.repeat(image[..., :1], 3, axis=-1))
    assert (image.min(), image.max()) == (-1, 1)


@pytest.mark.parametrize(("image_size", "resize_ratio"), [(16, 1.125), (24, 1.0), (13, 1.5)])
def test_evaluation_takes_the_center_crop(photos_config, tiny, image_size, resize_ratio):
    config = photos_config(image_size=image_size, resize_ratio=resize_ratio)
    (batch,) = pipeline.evaluation_batches(config, "validation", 7)
    for encoded, image in zip(tiny.photos["validation"], batch["image"], strict=True):
        resized = _resized(encoded, round(resize_ratio * image_size))
        top, left = ((side - image_size) // 2 for side in resized.shape[:2])
        crop = resized[top : top + image_size, left : left + image_size]
        np.testing.assert_allclose(image, crop / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(("image_size", "resize_ratio"), [(16, 1.125), (40, 1.0), (13, 1.5)])
def test_masks_stay_with_their_images(masked_config, tiny, image_size, resize_ratio):
    """Numbers stay as they are, on the white blocks; the row past the end holds none."""
    config = masked_config(image_size=image_size, resize_ratio=resize_ratio)
    batches = list(pipeline.evaluation_batches(config, "test", 3, masks=True))
    masks = np.concatenate([batch["segmentation_mask"] for batch in batches])
    assert (masks.dtype, masks.shape) == (np.uint8, (6, image_size, image_size))
    assert not masks[5].any()
    images = np.concatenate([batch["image"] for batch in batches])[..., 0]
    for (_, encoded), mask, image in zip(tiny.masked["test"], masks[:5], images[:5], strict=True):
        whole = Image.open(io.BytesIO(encoded))
        shorter = round(resize_ratio * image_size)
        size = [side * shorter // min(whole.size) for side in whole.size]
        resized = np.asarray(whole.resize(size, Image.Resampling.NEAREST))
        top, left = ((side - image_size) // 2 for side in resized.shape)
        crop = resized[top : top + image_size, left : left + image_size]
        np.testing.assert_array_equal(mask, crop)
        clear = np.abs(image) > 0.5
        assert clear.mean() > 0.6
        np.testing.assert_array_equal(mask[clear] > 0, image[clear] > 0)


def test_masks_come_on_demand_only(masked_config):
    config = masked_config()
    with_masks = list(pipeline.evaluation_batches(config, "test", 3, masks=True))
    without = list(pipeline.evaluation_batches(config, "test", 3))
    for batch in with_masks:
        del batch["segmentation_mask"]
    _assert_equal(with_masks, without)
    assert len(list(pipeline.evaluation_batches(config, "damaged", 2))) == 1
    with pytest.raises(UserError, match=r"^segmentation_mask damaged\[1\] cannot be decoded"):
        list(pipeline.evaluation_batches(config, "damaged", 2, masks=True))


@pytest.mark.parametrize("dataset", ["tiny_photos", "tiny_colour_masked"])
def test_dataset_without_masks(masked_config, dataset):
    config = masked_config(dataset=dataset)
    with pytest.raises(UserError, match=f"dataset {dataset} has no masks: .* has image,") as error:
        pipeline.evaluation_batches(config, "damaged", 2, masks=True)
    assert len(str(error.value).splitlines()) == 1


def test_training_takes_every_crop(photos_config, tiny):
    """Photo 6 is 82 x 46: resized to 17 x 10, with 10 x 3 places for a crop of 8 x 8."""
    resized = _resized(tiny.photos["train"][6], 10).astype(np.float32) / 127.5 - 1
    places = {
        resized[top : top + 8, left : left + 8].round(4).tobytes(): (top, left)
        for top, left in itertools.product(range(3), range(10))
    }
    assert resized.shape == (10, 17, 3) and len(places) == 30
    config = photos_config(train_split="train[6:7]", image_size=8, resize_ratio=1.25)
    found = [
        places[batch["image"][0].round(4).tobytes()] for batch in _take(config, 300, batch_size=1)
    ]
    assert set(found) == set(places.values())


def test_every_image_once_an_epoch_in_ever_new_order(digits_config):
    config = digits_config(image_size=8, resize_ratio=1.0)
    batches = _take(config, 6, batch_size=479)
    first, second = _rows(batches[:3]), _rows(batches[3:])
    assert sorted(first) == sorted(second) == sorted(_evaluated_rows(config, "train"))
    assert first != second


def test_two_processes_share_an_epoch(digits_config):
    config = digits_config(image_size=8, resize_ratio=1.0, train_split="train[:1400]")
    shares = [
        _rows(_take(config, 7, batch_size=100, process_index=index, process_count=2))
        for index in range(2)
    ]
    assert sorted(shares[0] + shares[1]) == sorted(_evaluated_rows(config, "train[:1400]"))


def test_batches_depend_on_the_seed_alone(photos_config):
    batches = _take(photos_config(), 6, seed=3)
    _assert_equal(batches, _take(photos_config(), 6, seed=3))
    assert not np.array_equal(batches[0]["image"], _take(photos_config(), 1, seed=4)[0]["image"])


@_LAW
@given(
    before=st.integers(0, 5),
    batch_size=st.integers(1, 3),
    process_count=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_state_continues_on_any_number_of_processes(
    pixels_config, before, batch_size, process_count, seed
):
    config = pixels_config()
    alone = {"batch_size": batch_size * process_count, "seed": seed}
    expected = _take(config, before + 3, **alone)[before:]
    state = _state_after(config, before, **alone)
    shares = [
        _take(
            config,
            3,
            state=state,
            batch_size=batch_size,
            seed=seed,
            process_index=index,
            process_count=process_count,
        )
        for index in range(process_count)
    ]
    for step, batch in enumerate(expected):
        assert _rows([batch]) == _rows([share[step] for share in shares])


def test_set_state_goes_back_in_the_same_iterator(photos_config):
    options = {"batch_size": 3, "seed": 1}
    with contextlib.closing(pipeline.train_iterator(photos_config(), **options)) as iterator:
        first = list(itertools.islice(iterator, 2))
        state = iterator.get_state()
        second = list(itertools.islice(iterator, 4))
        iterator.set_state(state)
        _assert_equal(second, list(itertools.islice(iterator, 4)))
        iterator.set_state({"position": 0})
        _assert_equal(first, list(itertools.islice(iterator, 2)))


@pytest.mark.slow
def test_worker_processes_change_nothing(photos_config):
    """Nor does it matter who wrote the state and who reads it."""
    expected = _take(photos_config(), 7)
    _assert_equal(expected, _take(photos_config(num_workers=2), 7))
    state = _state_after(photos_config(num_workers=2), 3)
    assert state == _state_after(photos_config(), 3)
    _assert_equal(expected[3:], _take(photos_config(num_workers=2), 4, state=state))
    evaluated = list(pipeline.evaluation_batches(photos_config(), "validation", 3))
    with_workers = pipeline.evaluation_batches(photos_config(num_workers=2), "validation", 3)
    _assert_equal(evaluated, list(with_workers))


def test_undecodable_images_are_skipped_named_and_counted(pixels_config, tiny, caplog):
    config = pixels_config(train_split="damaged")
    with caplog.at_level(logging.WARNING):
        (batch,) = _take(config, 1, batch_size=10)
    assert batch["skipped"].sum() == 3
    for index in (2, 3, 9):
        assert f"damaged[{index}] cannot be decoded" in caplog.text
    labels, counts = np.unique(batch["label"], return_counts=True)
    assert set(labels) == set(range(10)) - {2, 3, 9} and counts.sum() == 10
    for image, label in zip(batch["image"], batch["label"], strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(tiny.pixels["damaged"][label])))
        np.testing.assert_allclose(image, pixels / 127.5 - 1, atol=1e-6)


def test_skipping_keeps_the_other_rows(pixels_config):
    """A damaged image takes no other out of its place: states stay comparable."""
    config = pixels_config(train_split="damaged")
    (whole,) = _take(config, 1, batch_size=10)
    parts = _take(config, 2, batch_size=5)
    skipped = np.concatenate([part["skipped"] for part in parts])
    np.testing.assert_array_equal(whole["skipped"], skipped)
    kept = skipped == 0
    labels = np.concatenate([part["label"] for part in parts])
    np.testing.assert_array_equal(whole["label"][kept], labels[kept])


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
    whole = _take(config, 6)
    content = files[1].read_bytes()
    files[1].unlink()  # It is another file then: the first iterator may still read ahead.
    if left != "no file":
        kept = {"one byte less": -1, "half": len(content) // 2, "the header": 64, "nothing": 0}
        files[1].write_bytes(content[: kept[left]])
    batches = _take(config, 6)
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
    batches = _take(config, 3)
    assert sum(batch["skipped"].sum() for batch in batches) == 1
    assert len({int(label) for batch in batches for label in batch["label"]}) == 11
    assert caplog.text.count(f"{files[2]} is cut off, damaged or missing") == 1


@pytest.mark.slow
def test_workers_name_a_cut_off_file_once(sharded, caplog):
    config, files = sharded
    os.truncate(files[0], 100)
    expected = _take(config, 6)
    examples._warn_once.cache_clear()
    caplog.clear()
    config.num_workers = 2
    _assert_equal(_take(config, 6), expected)
    assert len([line for line in caplog.messages if config.data_dir in line]) == 1


def _kill_workers(count=None):
    """Ends data workers of this process as the kernel does when memory is short."""
    workers = multiprocessing.active_children()[:count]
    assert workers
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.slow
def test_dying_workers_change_no_batch(photos_config, caplog):
    expected = _take(photos_config(), 12)
    options = {"batch_size": 4, "seed": 0}
    config = photos_config(num_workers=2)
    batches = []
    with contextlib.closing(pipeline.train_iterator(config, **options)) as iterator:
        for step in range(12):
            if step in (1, 7):
                _kill_workers(count=1 if step == 1 else 2)
            batches.append(next(iterator))
    _assert_equal(batches, expected)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert all("a data worker has died (exit code -9)" in line for line in warnings)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_workers_that_die_again_and_again_are_an_error(photos_config, caplog):
    config = photos_config(num_workers=1)
    with contextlib.closing(pipeline.train_iterator(config, batch_size=4, seed=0)) as iterator:
        next(iterator)
        with pytest.raises(UserError, match="died 4 times within .* lower config.data.num_workers"):
            for _ in range(100):
                if workers := multiprocessing.active_children():
                    os.kill(workers[0].pid, signal.SIGKILL)
                next(iterator)
    assert len(caplog.records) == 3


@pytest.mark.slow
def test_a_dying_worker_changes_no_evaluation(photos_config, caplog):
    expected = list(pipeline.evaluation_batches(photos_config(), "validation", 1))
    batches = []
    for batch in pipeline.evaluation_batches(photos_config(num_workers=2), "validation", 1):
        if not batches:
            _kill_workers()
        batches.append(batch)
    _assert_equal(batches, expected)
    assert "a data worker has died" in caplog.text


def test_a_batch_without_one_decodable_image_is_an_error(pixels_config):
    with pytest.raises(UserError, match="not one image of a batch of 4 can be decoded"):
        _take(pixels_config(train_split="hopeless"), 1)


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_undecodable_image_stops_evaluation(photos_config, num_workers):
    batches = pipeline.evaluation_batches(photos_config(num_workers=num_workers), "damaged", 2)
    with pytest.raises(UserError) as error:
        list(batches)
    (line,) = str(error.value).splitlines()
    assert line.startswith("image damaged_1.JPEG cannot be decoded")


@pytest.mark.parametrize("process_count", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_evaluation_keeps_the_order_and_pads(pixels_config, process_count, batch_size):
    shares = [
        pipeline.evaluation_batches(
            pixels_config(),
            "train[:7]",
            batch_size,
            process_index=index,
            process_count=process_count,
        )
        for index in range(process_count)
    ]
    assert len({len(share) for share in shares}) == 1
    assert all(share.num_examples == 7 for share in shares)
    assert [len(list(share)) for share in shares] == [len(share) for share in shares]
    together = [batch for step in zip(*shares, strict=True) for batch in step]
    assert all(len(batch["image"]) == batch_size for batch in together)
    mask = np.concatenate([batch["mask"] for batch in together])
    labels = np.concatenate([batch["label"] for batch in together])
    np.testing.assert_array_equal(labels[mask], np.arange(7))
    assert mask[:7].all() and not mask[7:].any()


@_LAW
@given(percent=st.integers(0, 100))
def test_slices_of_a_split(pixels_config, percent):
    config = pixels_config()
    parts = (f"train[:{percent}%]", f"train[{percent}%:]")
    assert sum(pipeline.num_examples(config, part) for part in parts) == 12


def test_slice_is_read_from_its_start(pixels_config):
    (batch,) = pipeline.evaluation_batches(pixels_config(), "train[5:9]", 4)
    np.testing.assert_array_equal(batch["label"], np.arange(5, 9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "no_such_dataset"}, "unknown dataset 'no_such_dataset': TFDS has none"),
        ({"dataset": "mnist/no_such_config"}, "unknown dataset 'mnist/no_such_config': .*Config"),
        ({"dataset": "tiny_unlabelled"}, "tiny_unlabelled is no set of labelled images: .* image"),
        (
            {"train_split": "nowhere"},
            "unknown split 'nowhere' of tiny_pixels/1.0.0: there are train, damaged, hopeless",
        ),
        ({"train_split": "train[:x%]"}, "unknown split"),
        ({"train_split": "train[:0]"}, r"split 'train\[:0\]' of tiny_pixels is empty"),
        ({"train_split": "train[:3]"}, "has 3 examples, fewer than one batch of 4"),
        ({"resize_ratio": 0.5}, "resize_ratio is 0.5: it must be at least 1"),
        ({"num_classes": 10}, "has 12 classes: set config.data.num_classes, which is 10"),
    ],
)
def test_mistakes_in_the_config(pixels_config, changes, message):
    with pytest.raises(UserError, match=message) as error:
        pipeline.train_iterator(pixels_config(**changes), batch_size=4, seed=0)
    assert len(str(error.value).splitlines()) == 1


def test_batch_of_all_processes_must_fit_the_split(pixels_config):
    with pytest.raises(UserError, match="has 12 examples, fewer than one batch of 15"):
        pipeline.train_iterator(pixels_config(), batch_size=5, seed=0, process_count=3)


def test_unprepared_dataset_says_the_command(tmp_path, pixels_config):
    config = pixels_config(dataset="digits", data_dir=str(tmp_path / "my data"))
    with pytest.raises(UserError) as error:
        pipeline.num_examples(config, "train")
    assert str(error.value) == (
        "dataset digits is not prepared: run `python -m nvg_jax.data.prepare digits "
        f"'--data_dir={tmp_path}/my data'`"
    )
    with pytest.raises(UserError, match="imagenet2012 is not prepared"):
        pipeline.evaluation_batches(pixels_config(dataset="imagenet2012"), "validation", 4)


def test_dataset_in_another_file_format(tfrecord_dir, pixels_config):
    with pytest.raises(UserError, match="not in ArrayRecord files: prepare it in another data_dir"):
        pipeline.evaluation_batches(pixels_config(data_dir=str(tfrecord_dir)), "train", 4)


_READER = """
import sys

from ml_collections import ConfigDict

from nvg_jax.data import examples, pipeline


def main():
    config = ConfigDict(dict(
        dataset="tiny_photos", data_dir=sys.argv[1], train_split="train", num_classes=8,
        image_size=16, resize_ratio=1.125, num_workers=int(sys.argv[2]),
    ))
    iterator = pipeline.train_iterator(config, batch_size=4, seed=0)
    next(iterator)
    for _ in pipeline.evaluation_batches(config, "validation", 4):
        pass
    print("tensorflow" in sys.modules, flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
"""


@contextlib.contextmanager
def _reader(tmp_path, tiny, num_workers):
    """A process that has read a dataset, none of whose code it knows, and waits."""
    script = tmp_path / "reader.py"
    script.write_text(_READER)
    process = subprocess.Popen(
        [sys.executable, script, tiny.data_dir, str(num_workers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_reading_imports_no_tensorflow(tmp_path, tiny):
    with _reader(tmp_path, tiny, num_workers=0) as process:
        assert process.stdout.readline() == "False\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")
def test_workers_have_no_tensorflow_and_end_with_a_killed_main_process(tmp_path, tiny):
    with _reader(tmp_path, tiny, num_workers=2) as process:
        assert process.stdout.readline() == "False\n"
        workers = _workers_of(process.pid)
        assert len(workers) == 2
        for worker in workers:
            assert "tensorflow/" not in pathlib.Path(f"/proc/{worker}/maps").read_text()
        process.send_signal(signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{worker}") for worker in workers):
        assert time.monotonic() < deadline, "workers are left behind"
        time.sleep(0.1)


def _workers_of(pid):
    # Children are listed by the thread that started them.
    children = [
        path.read_text().split() for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    ]
    return [
        child
        for child in itertools.chain(*children)
        if "spawn_main" in pathlib.Path(f"/proc/{child}/cmdline").read_text()
    ]


def _crops(config, starts, **options):
    options = {"batch_size": 4, "seed": 0} | options
    with contextlib.closing(
        pipeline.crop_batches(config, config.train_split, starts, **options)
    ) as batches:
        return list(batches)


def test_a_crop_depends_on_its_number_and_the_seed_alone(photos_config):
    """8 images, so crops 8 to 15 are the second ones of each."""
    whole = _crops(photos_config(), [0], batch_size=24)[0]
    np.testing.assert_array_equal(whole["label"], np.tile(np.arange(8), 3))
    first, second, third = np.split(whole["image"], 3)
    assert (first != second).any() and (second != third).any()
    for start, batch in zip((9, 2, 20), _crops(photos_config(), (9, 2, 20)), strict=True):
        for name, value in batch.items():
            np.testing.assert_array_equal(value, whole[name][start : start + 4], err_msg=name)
    assert (_crops(photos_config(), [0], seed=1)[0]["image"] != whole["image"][:4]).any()


def test_numbered_crops_pass_over_undecodable_images(pixels_config, caplog):
    (batch,) = _crops(pixels_config(train_split="damaged"), [10], batch_size=10)
    np.testing.assert_array_equal(np.flatnonzero(batch["skipped"]), [2, 3, 9])
    np.testing.assert_array_equal(batch["label"], [0, 1, 4, 4, 4, 5, 6, 7, 8, 0])
    assert "damaged[9] cannot be decoded" in caplog.text


@pytest.mark.slow
def test_worker_processes_change_no_numbered_crop(photos_config):
    expected = _crops(photos_config(), (9, 2, 20))
    _assert_equal(expected, _crops(photos_config(num_workers=2), (9, 2, 20)))
