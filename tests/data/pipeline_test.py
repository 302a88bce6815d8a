import io
import itertools
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nvg_jax.data import pipeline
from nvg_jax.data.stream import Order
from nvg_jax.errors import UserError
from tests.data import tiny
from tests.data.batches import ORDER, assert_equal, crop_batches, joined, take, train_batches

_LAW = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
SIZES = pytest.mark.parametrize(
    ("image_size", "resize_ratio"), [(16, 1.125), (24, 1.0), (40, 1.0), (13, 1.5)]
)


def _rows(batches):
    """One bytes object an example, to count examples as a multiset."""
    return [
        image.tobytes() + label.tobytes()
        for batch in batches
        for image, label in zip(batch["image"], batch["label"], strict=True)
    ]


def _evaluated_rows(config, split):
    batches = list(pipeline.evaluation_batches(config, split, 64))
    return list(itertools.compress(_rows(batches), joined(batches, "mask")))


def _resized(encoded, mode, shorter_side, resampling=Image.Resampling.LANCZOS):
    """Straight from Pillow: shorter side to `shorter_side`, the other in proportion."""
    image = Image.open(io.BytesIO(encoded)).convert(mode)
    size = [side * shorter_side // min(image.size) for side in image.size]
    return np.asarray(image.resize(size, resampling))


def _center(pixels, image_size):
    top, left = ((side - image_size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + image_size, left : left + image_size]


def test_batches_have_the_types_of_the_model(photos_config):
    (trained,) = train_batches(photos_config(), 1)
    evaluated = next(iter(pipeline.evaluation_batches(photos_config(), "validation", 4)))
    common = {"image": (np.uint8, (4, 16, 16, 3)), "label": (np.int32, (4,))}
    for batch, own in (
        (trained, {"skipped": (np.int32, (4,))}),
        (evaluated, {"mask": (np.bool_, (4,))}),
    ):
        found = {name: (value.dtype, value.shape) for name, value in batch.items()}
        assert found == common | own


def test_grey_digits_come_as_rgb_in_the_whole_range(digits_config):
    config = digits_config(image_size=8, resize_ratio=1.0)
    batch = next(iter(pipeline.evaluation_batches(config, "test", 360)))
    image = batch["image"]
    np.testing.assert_array_equal(image, np.repeat(image[..., :1], 3, axis=-1))
    assert (image.min(), image.max()) == (0, 255)


@SIZES
def test_evaluation_takes_the_center_crop(photos_config, image_size, resize_ratio):
    config = photos_config(image_size=image_size, resize_ratio=resize_ratio)
    (batch,) = pipeline.evaluation_batches(config, "validation", 7)
    for encoded, image in zip(tiny.PHOTOS["validation"], batch["image"], strict=True):
        crop = _center(_resized(encoded, "RGB", round(resize_ratio * image_size)), image_size)
        np.testing.assert_array_equal(image, crop)


@SIZES
def test_masks_stay_with_their_images(masked_config, image_size, resize_ratio):
    """Numbers stay as they are, on the white blocks; the row past the end holds none."""
    config = masked_config(image_size=image_size, resize_ratio=resize_ratio)
    batches = list(pipeline.evaluation_batches(config, "test", 3, masks=True))
    masks, images = joined(batches, "segmentation_mask"), joined(batches, "image")[..., 0]
    assert (masks.dtype, masks.shape) == (np.uint8, (6, image_size, image_size))
    assert not masks[5].any()
    shorter = round(resize_ratio * image_size)
    for (_, encoded), mask, image in zip(tiny.MASKED["test"], masks[:5], images[:5], strict=True):
        expected = _resized(encoded, "L", shorter, Image.Resampling.NEAREST)
        np.testing.assert_array_equal(mask, _center(expected, image_size))
        white, clear = image > 127, (image < 64) | (image > 191)
        assert clear.mean() > 0.6
        np.testing.assert_array_equal(mask[clear] > 0, white[clear])


def test_masks_come_on_demand_only(masked_config):
    config = masked_config()
    with_masks = list(pipeline.evaluation_batches(config, "test", 3, masks=True))
    without = list(pipeline.evaluation_batches(config, "test", 3))
    for batch in with_masks:
        del batch["segmentation_mask"]
    assert_equal(with_masks, without)
    assert len(list(pipeline.evaluation_batches(config, "damaged", 2))) == 1
    with pytest.raises(UserError, match=r"^segmentation_mask damaged\[1\] cannot be decoded"):
        list(pipeline.evaluation_batches(config, "damaged", 2, masks=True))


@pytest.mark.parametrize("dataset", ["tiny_photos", "tiny_colour_masked"])
def test_dataset_without_masks(masked_config, dataset):
    config = masked_config(dataset=dataset)
    with pytest.raises(UserError, match=f"dataset {dataset} has no masks: .* has image,") as error:
        pipeline.evaluation_batches(config, "damaged", 2, masks=True)
    assert len(str(error.value).splitlines()) == 1


def test_training_takes_every_crop(photos_config):
    """Photo 6 is 82 x 46: resized to 17 x 10, with 10 x 3 places for a crop of 8 x 8."""
    resized = _resized(tiny.PHOTOS["train"][6], "RGB", 10)
    places = {
        resized[top : top + 8, left : left + 8].tobytes(): (top, left)
        for top, left in itertools.product(range(3), range(10))
    }
    assert resized.shape == (10, 17, 3) and len(places) == 30
    config = photos_config(train_split="train[6:7]", image_size=8, resize_ratio=1.25)
    images = joined(train_batches(config, 300, batch_size=1), "image")
    assert {places[image.tobytes()] for image in images} == set(places.values())


def test_every_image_once_an_epoch_in_ever_new_order(digits_config):
    config = digits_config(image_size=8, resize_ratio=1.0)
    batches = train_batches(config, 6, batch_size=479)
    first, second = _rows(batches[:3]), _rows(batches[3:])
    assert sorted(first) == sorted(second) == sorted(_evaluated_rows(config, "train"))
    assert first != second


def test_batches_depend_on_the_seed_alone(photos_config):
    batches = train_batches(photos_config(), 6, seed=3)
    assert_equal(batches, train_batches(photos_config(), 6, seed=3))
    (other,) = train_batches(photos_config(), 1, seed=4)
    assert not np.array_equal(batches[0]["image"], other["image"])


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
    iterator = pipeline.train_iterator(config, Order(batch_size * process_count, seed))
    for _ in range(before):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))  # As checkpoints keep it.
    expected = take(iterator, 3)
    shares = [
        train_batches(
            config,
            3,
            state,
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
    iterator = pipeline.train_iterator(photos_config(), Order(batch_size=3, seed=1))
    first = list(itertools.islice(iterator, 2))
    state = iterator.get_state()
    second = list(itertools.islice(iterator, 4))
    iterator.set_state(state)
    assert_equal(second, list(itertools.islice(iterator, 4)))
    assert_equal(first, take(iterator, 2, {"position": 0}))


@pytest.mark.parametrize("process_count", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_evaluation_keeps_the_order_and_pads(pixels_config, process_count, batch_size):
    config = pixels_config()
    shares = [
        pipeline.evaluation_batches(
            config, "train[:7]", batch_size, process_index=index, process_count=process_count
        )
        for index in range(process_count)
    ]
    assert len({len(share) for share in shares}) == 1
    assert all(share.num_examples == 7 for share in shares)
    assert [len(list(share)) for share in shares] == [len(share) for share in shares]
    together = [batch for step in zip(*shares, strict=True) for batch in step]
    assert all(len(batch["image"]) == batch_size for batch in together)
    mask = joined(together, "mask")
    np.testing.assert_array_equal(joined(together, "label")[mask], np.arange(7))
    assert mask[:7].all() and not mask[7:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "no_such_dataset"}, "unknown dataset 'no_such_dataset': TFDS has none"),
        (
            {"dataset": "mnist/no_such"},
            "dataset 'mnist/no_such' in .*: BuilderConfig no_such not found",
        ),
        (
            {"dataset": "no name"},
            "cannot load dataset 'no name' in .* must be of the following format",
        ),
        ({"dataset": "tiny_unlabelled"}, "tiny_unlabelled is no set of labelled images: .* image"),
        (
            {"train_split": "nowhere"},
            r"unknown split 'nowhere' of tiny_pixels/1.0.0: there are train \(12 examples\), dam",
        ),
        ({"train_split": "train[:x%]"}, "unknown split"),
        ({"train_split": "train[:0]"}, r"split 'train\[:0\]' of tiny_pixels is empty"),
        ({"train_split": "train[5:2]"}, r"split 'train\[5:2\]' of tiny_pixels is empty"),
        ({"train_split": "train[:3]"}, "has 3 examples, fewer than one batch of 4"),
        ({"resize_ratio": 0.5}, "resize_ratio is 0.5: it must be at least 1"),
        ({"num_classes": 10}, "has 12 classes: set config.data.num_classes, which is 10"),
    ],
)
def test_mistakes_in_the_config(pixels_config, changes, message):
    with pytest.raises(UserError, match=message) as error:
        pipeline.train_iterator(pixels_config(**changes), ORDER)
    assert len(str(error.value).splitlines()) == 1


def test_squares_that_are_not_enlarged_have_one_crop(digits_config, photos_config):
    assert pipeline.has_one_crop(digits_config(resize_ratio=1.0))
    assert not pipeline.has_one_crop(digits_config(resize_ratio=1.125))
    assert not pipeline.has_one_crop(photos_config(resize_ratio=1.0))  # Of any size.


def test_batch_of_all_processes_must_fit_the_split(pixels_config):
    with pytest.raises(UserError, match="has 12 examples, fewer than one batch of 15"):
        pipeline.train_iterator(pixels_config(), Order(5, seed=0, process_count=3))


def test_unprepared_dataset_says_the_command(tmp_path, pixels_config):
    config = pixels_config(dataset="digits", data_dir=str(tmp_path / "my data"))
    with pytest.raises(UserError) as error:
        pipeline.num_examples(config, "train")
    assert str(error.value) == (
        f"dataset digits is not prepared, there is no {tmp_path}/my data/digits/1.0.0: run `python "
        f"-m nvg_jax.data.prepare digits '--data_dir={tmp_path}/my data'`, or set "
        "config.data.data_dir to the folder that holds digits/"
    )
    config = pixels_config(dataset="from_files_alone", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=f"TFDS has none .*, and none is prepared in {tmp_path}$"):
        pipeline.num_examples(config, "train")
    with pytest.raises(UserError, match="imagenet2012 is not prepared"):
        pipeline.evaluation_batches(pixels_config(dataset="imagenet2012"), "validation", 4)


@pytest.mark.parametrize(
    ("dataset", "split", "expected"),
    [
        ("tiny_pixels", "train[:5]", 5),
        ("imagenet2012", "train", 1_281_167),
        ("imagenet2012:5.1.0", "validation", 50_000),
        ("imagenet2012", "test", None),
        ("digits", "train", None),
    ],
)
def test_published_sizes_stand_in_for_what_is_not_prepared(pixels_config, dataset, split, expected):
    assert pipeline.published_num_examples(pixels_config(dataset=dataset), split) == expected


def test_dataset_in_another_file_format(tfrecord_dir, pixels_config):
    with pytest.raises(UserError, match="not in ArrayRecord files: prepare it in another data_dir"):
        pipeline.evaluation_batches(pixels_config(data_dir=str(tfrecord_dir)), "train", 4)


def test_a_crop_depends_on_its_number_and_the_seed_alone(photos_config):
    """8 images, so crops 8 to 15 are the second ones of each."""
    (whole,) = crop_batches(photos_config(), [0], batch_size=24)
    np.testing.assert_array_equal(whole["label"], np.tile(np.arange(8), 3))
    first, second, third = np.split(whole["image"], 3)
    assert (first != second).any() and (second != third).any()
    starts = (9, 2, 20)
    expected = [{name: x[start : start + 4] for name, x in whole.items()} for start in starts]
    assert_equal(crop_batches(photos_config(), starts), expected)
    assert (crop_batches(photos_config(), [0], seed=1)[0]["image"] != whole["image"][:4]).any()
