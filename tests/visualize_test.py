"""Pictures: exact pixels where they are determined, laws of the colours, layout of the strips."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nvg_jax import visualize


def colours(stage):
    """The colour of every cluster of a stage, [2^stage, 3]."""
    return visualize.structure_picture(np.arange(2**stage)[None], stage)[0].astype(int)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_grid_holds_every_image_at_its_place(seed, count, columns, scale, padding):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, (count, 3, 5, 3), np.uint8)  # never the white of the background
    picture = visualize.grid(images, columns, scale, padding)
    rows = -(-count // columns)
    height, width = 3 * scale + padding, 5 * scale + padding
    assert picture.shape == (rows * height + padding, columns * width + padding, 3)
    for index, image in enumerate(images):
        top, left = padding + index // columns * height, padding + index % columns * width
        cell = picture[top : top + 3 * scale, left : left + 5 * scale]
        np.testing.assert_array_equal(cell, magnified(image, scale))
    drawn = np.any(picture != 255, axis=-1).sum()
    assert drawn == count * 15 * scale**2


@pytest.mark.parametrize(("size", "cell"), [(8, 64), (16, 64), (28, 84), (64, 64), (256, 256)])
def test_grid_magnifies_tiny_images_only(size, cell):
    picture = visualize.grid(np.zeros((4, size, size, 3), np.uint8), padding=0)
    assert picture.shape == (2 * cell, 2 * cell, 3)


def test_the_first_stage_is_grey():
    (grey,) = colours(0)
    assert len(set(grey)) == 1


@pytest.mark.parametrize("stage", range(1, 9))
def test_every_cluster_has_a_colour_of_its_own(stage):
    assert len(np.unique(colours(stage), axis=0)) == 2**stage


@pytest.mark.parametrize("stage", range(2, 9))
def test_a_child_looks_more_like_its_parent_than_like_other_parents(stage):
    distance = np.linalg.norm(colours(stage)[:, None] - colours(stage - 1)[None], axis=-1)
    parents = np.arange(2**stage) >> 1
    own = distance[np.arange(2**stage), parents]
    distance[np.arange(2**stage), parents] = np.nan
    assert own.mean() < 0.6 * np.nanmean(distance, axis=1).mean()
    assert np.all(own < np.nanmean(distance, axis=1))


def magnified(pixels, scale):
    return pixels.repeat(scale, axis=-3).repeat(scale, axis=-2)


def strip_parts(picture, count, stages, cell, gap, caption):
    """Cuts strips of square cells into canvases and maps [count, stages, cell, cell, 3]."""
    tops = caption + np.arange(count) * (2 * cell + 5 * gap)
    lefts = gap + np.arange(stages) * (cell + gap)
    cut = lambda y, x: picture[y : y + cell, x : x + cell]  # noqa: E731
    canvases = np.array([[cut(y, x) for x in lefts] for y in tops])
    return canvases, np.array([[cut(y + cell + gap, x) for x in lefts] for y in tops])


CAPTIONS = [f"stage {stage}" for stage in range(5)]


@pytest.fixture
def two_images():
    rng = np.random.default_rng(0)
    canvases = rng.integers(0, 256, (2, 5, 16, 16, 3), np.uint8)
    return canvases, np.stack([rng.permutation(16) for _ in range(2)]).astype(np.int32)


def test_strips_show_each_stage_above_its_structure(two_images):
    canvases, structure = two_images
    picture = visualize.strips(canvases, structure, (4, 4), CAPTIONS)
    cell, gap, caption = 96, 3, 36
    assert picture.shape == (caption + 4 * cell + 7 * gap, gap + 5 * (cell + gap), 3)
    shown, maps = strip_parts(picture, 2, 5, cell, gap, caption)
    np.testing.assert_array_equal(shown, magnified(canvases, 6))
    for stage in range(5):
        labels = structure.reshape(2, 4, 4) >> (4 - stage)
        np.testing.assert_array_equal(maps[:, stage], magnified(colours(stage)[labels], 24))


def test_strips_caption_every_column(two_images):
    canvases, structure = two_images
    captions = visualize.strips(canvases, structure, (4, 4), CAPTIONS, canvases[:, 0])[:36]
    lefts = [3 + stage * 99 for stage in range(5)] + [3 + 5 * 99 + 9]
    texts = [captions[:, left : left + 96] for left in lefts]
    assert all(np.any(text < 128) for text in texts)
    assert len({text.tobytes() for text in texts}) == 6


def test_strips_put_the_originals_into_the_last_column(two_images):
    canvases, structure = two_images
    originals = 255 - canvases[:, 0]
    alone = visualize.strips(canvases, structure, (4, 4), CAPTIONS)
    picture = visualize.strips(canvases, structure, (4, 4), CAPTIONS, originals)
    np.testing.assert_array_equal(picture[:, : alone.shape[1]], alone)
    left = alone.shape[1] + 3 * 3
    for top, original in zip((36, 36 + 2 * 96 + 5 * 3), originals, strict=True):
        cell = picture[top : top + 96, left : left + 96]
        np.testing.assert_array_equal(cell, magnified(original, 6))


def test_strips_keep_the_shape_of_wide_images():
    canvases = np.zeros((1, 4, 64, 128, 3), np.uint8)
    structure = np.arange(8, dtype=np.int32)[None]
    for rows, maps in enumerate((None, structure), start=1):
        picture = visualize.strips(canvases, maps, (2, 4), CAPTIONS[:4])
        assert picture.shape == (48 + rows * 64 + rows * 4, 4 + 4 * (128 + 4), 3)
        np.testing.assert_array_equal(picture[48:112, 4:132], 0)


def test_save_png_makes_the_folder_and_keeps_every_pixel(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    path = tmp_path / "new" / "folder" / "picture.png"
    visualize.save_png(path, picture)
    with Image.open(path) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), picture)
