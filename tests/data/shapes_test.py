import numpy as np
import pytest
from scipy import ndimage

from nvg_jax.data import shapes

NUM_SCENES = 480


@pytest.fixture(scope="module")
def scenes():
    """Images, masks and labels of the first scenes of the test split."""
    indices = range(NUM_SCENES)
    images, masks = zip(*(shapes.scene("test", index) for index in indices), strict=True)
    return np.stack(images), np.stack(masks), np.array([*map(shapes.label_of, indices)])


@pytest.fixture(scope="module")
def builder(shapes_dir):
    return shapes.Shapes(data_dir=shapes_dir)


def _mean_iou(a, b):
    return ((a & b).sum((1, 2)) / (a | b).sum((1, 2))).mean()


@pytest.mark.parametrize("split", ["train", "test"])
def test_files_hold_the_scenes_in_turn(builder, split):
    source = builder.as_data_source(split)
    assert len(source) == 20
    for index, example in enumerate(source):
        image, mask = shapes.scene(split, index)
        np.testing.assert_array_equal(example["image"], image)
        np.testing.assert_array_equal(example["segmentation_mask"][..., 0], mask)
        assert example["label"] == index % 16


def test_info(builder):
    features = builder.info.features
    assert features["image"].shape == (64, 64, 3)
    assert features["segmentation_mask"].shape == (64, 64, 1)
    assert features["label"].names == list(shapes.CLASSES)
    assert len(set(shapes.CLASSES)) == 16 and "blue star" in shapes.CLASSES


@pytest.mark.parametrize(("split", "num_scenes"), [("train", 8000), ("test", 800)])
def test_classes_are_balanced(split, num_scenes):
    counts = np.bincount(list(map(shapes.label_of, range(shapes.SPLITS[split].num_scenes))))
    np.testing.assert_array_equal(counts, [num_scenes // 16] * 16)


def test_scenes_differ_and_stay():
    images = [
        shapes.scene(split, index)[0] for split in shapes.SPLITS for index in range(0, 64, 16)
    ]
    assert len({image.tobytes() for image in images}) == 8
    np.testing.assert_array_equal(images[1], shapes.scene("train", 16)[0])


def test_mask_is_where_the_colour_is(scenes):
    """Apart from the pixels of the edge, which are between both; tips have long ones."""
    images, masks, _ = scenes
    colourfulness = np.ptp(images.astype(int), axis=-1)
    cross = ndimage.generate_binary_structure(2, 1)[None]
    assert colourfulness[ndimage.binary_erosion(masks, cross)].min() > 70
    assert colourfulness[~ndimage.binary_dilation(masks, cross, iterations=3)].max() < 20


def test_objects_are_inside_and_of_all_sizes(scenes):
    _, masks, labels = scenes
    assert not (masks[:, [0, -1]].any() or masks[:, :, [0, -1]].any())
    for shape, largest in zip(shapes.SHAPES, (0.5, 0.5, 0.42, 0.39), strict=True):
        area = masks[labels // 4 == shapes.SHAPES.index(shape)].mean(axis=(1, 2))
        assert 0.115 < area.min() < 0.14 and largest - 0.03 < area.max() < largest + 0.02, shape
        assert abs(area.mean() - (0.12 + largest) / 2) < 0.03, shape


def test_objects_have_the_shape_of_their_class(scenes):
    """A regular shape of n corners has a moment of order n and none below."""
    _, masks, labels = scenes
    for mask, label in zip(masks, labels, strict=True):
        y, x = np.nonzero(mask)
        place = (x - x.mean()) + 1j * (y - y.mean())
        moments = {n: abs((place**n).sum()) / (abs(place) ** n).sum() for n in (3, 4, 5)}
        largest = max(moments, key=moments.get)
        name = {3: "triangle", 4: "square", 5: "star"}[largest]
        found = name if moments[largest] > 0.1 else "circle"
        assert found == shapes.CLASSES[label].split()[1], moments


def test_objects_have_the_colour_of_their_class(scenes):
    strong_channels = {"red": [0], "green": [1], "blue": [2], "yellow": [0, 1]}
    for image, mask, label in zip(*scenes, strict=True):
        colour = image[mask].mean(0)
        strong = np.flatnonzero(colour > (colour.min() + colour.max()) / 2)
        assert list(strong) == strong_channels[shapes.CLASSES[label].split()[0]]


def test_backgrounds_are_bright_and_dark_plain_and_textured(scenes):
    images, masks, _ = scenes
    grey = images.mean(-1)
    levels = [image[~mask] for image, mask in zip(grey, masks, strict=True)]
    brightness = [each.mean() for each in levels]
    contrast = [each.std() for each in levels]
    assert min(brightness) < 70 and max(brightness) > 185
    assert min(contrast) < 8 and max(contrast) > 45


def test_segmentation_by_colour(scenes):
    images, masks, labels = scenes
    found = shapes.segment(images, labels)
    assert _mean_iou(found, masks) > 0.98
    assert not (shapes.segment(images, (labels + 1) % 16) & ~masks).any()


def test_segmentation_of_blurred_and_noisy_images(scenes):
    images, masks, labels = scenes
    noise = np.random.default_rng(0).normal(0, 10, images.shape)
    blurred = ndimage.gaussian_filter(images.astype(float), (0, 1, 1, 0)) + noise
    found = shapes.segment(np.clip(blurred, 0, 255).astype(np.uint8), labels)
    assert _mean_iou(found, masks) > 0.94


def test_segmentation_finds_nothing_of_another_colour(scenes):
    images, masks, labels = scenes
    for offset in (1, 2, 3):
        other = labels // 4 * 4 + (labels + offset) % 4
        assert shapes.segment(images, other).mean() < 0.001


def test_crowds_hold_two_to_four_objects_the_last_in_front(crowds_dir):
    source = shapes.Crowds(data_dir=crowds_dir).as_data_source("test")
    counts = set()
    for index, example in enumerate(source):
        image, mask = shapes.crowd("test", index)
        np.testing.assert_array_equal(example["image"], image)
        np.testing.assert_array_equal(example["segmentation_mask"][..., 0], mask)
        assert example["label"] == index % 16 and (mask == 0).any()
        front = mask == mask.max()
        found = shapes.segment(image[None], np.array([example["label"]]))[0]
        assert (found & front).sum() > 0.85 * front.sum() > 0.03 * front.size
        counts.add(int(mask.max()))
    assert counts == {2, 3, 4}
