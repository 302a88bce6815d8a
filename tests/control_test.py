"""Maps become balanced, nested structures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nvg_jax import control
from nvg_jax.errors import UserError

GRID = (4, 8)


def maps_of(structure, num_stages):
    """The labels of each given stage."""
    last_stage = len(structure).bit_length() - 1
    return [structure >> (last_stage - stage) for stage in range(num_stages)]


def blocks(labels, size=3):
    """One label for each position, as pixels."""
    return np.kron(labels.reshape(GRID), np.ones((size, size), int))


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.booleans())
def test_every_map_becomes_balanced_and_nested(seed, num_stages, pixels):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 2 ** (num_stages - 1) + 1))
    levels = rng.integers(0, count, (12, 24) if pixels else GRID)
    levels.flat[:2] = 0, 1
    structure = control.structure_from_map(levels, GRID, num_stages)
    maps = maps_of(structure, num_stages)
    for stage, labels in enumerate(maps):
        np.testing.assert_array_equal(np.bincount(labels), 32 // 2**stage)
        if stage:
            np.testing.assert_array_equal(labels >> 1, maps[stage - 1])
    undecided = structure & ((1 << (6 - num_stages)) - 1)
    np.testing.assert_array_equal(undecided, 0)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_a_balanced_map_comes_out_as_it_is(seed, num_stages):
    clusters = 2 ** (num_stages - 1)
    labels = np.random.default_rng(seed).permutation(32) % clusters
    for levels in (blocks(labels), 7 * labels.reshape(GRID) + 3):
        structure = control.structure_from_map(levels, GRID, num_stages, strict=True)
        np.testing.assert_array_equal(maps_of(structure, num_stages)[-1], labels)
    assert control.stages_for(levels) == num_stages


def test_what_is_too_large_loses_the_positions_at_its_boundary():
    """A square of 6 x 6 in 8 x 8 positions keeps its inside, a small one grows around itself."""
    for low, high in ((1, 7), (3, 5)):
        levels = np.zeros((8, 8), int)
        levels[low:high, low:high] = 1
        half = maps_of(control.structure_from_map(levels, (8, 8), 2), 2)[1].reshape(8, 8)
        assert half[2:6, 2:6].all()
        inside = levels == 1
        assert (half.sum() == 32) and (half[inside].all() if low == 3 else not half[~inside].any())


def test_later_stages_follow_the_distance_to_the_boundary():
    levels = control.draw_shape("circle:0.5,0.5,0.3", 64)
    labels = maps_of(control.structure_from_map(levels, (8, 8), 4), 4)[-1].reshape(8, 8)
    assert labels[3:5, 3:5].min() == 7 and labels[[0, 0, -1, -1], [0, -1, 0, -1]].max() == 0
    y, x = np.indices((8, 8)) - 3.5
    means = [np.hypot(x, y)[labels == label].mean() for label in range(8)]
    assert (np.diff(means) < 0).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("left", "1100 1100 1100 1100"),
        ("right", "0011 0011 0011 0011"),
        ("top", "1111 1111 0000 0000"),
        ("bottom", "0000 0000 1111 1111"),
        ("rect:0.25,0,1,0.5", "0111 0111 0000 0000"),
        ("circle:0,0,0.6", "1100 1100 0000 0000"),
    ],
)
def test_shapes(text, expected):
    drawn = control.draw_shape(text, 4)
    assert " ".join("".join(map(str, row)) for row in drawn) == expected


@pytest.mark.parametrize("cells", [4, 8, 16])
@pytest.mark.parametrize("text", ["circle:0.5,0.5,0.3", "rect:0.25,0.25,0.75,0.75"])
def test_equally_near_positions_are_taken_all_around(text, cells):
    """What looks the same from every side is halved so: a circle stays one, and is no band."""
    levels = control.draw_shape(text, 16 * cells)
    grid, last_stage = (cells, cells), 2 * cells.bit_length() - 2
    structure = control.structure_from_map(levels, grid, 2).reshape(grid) >> (last_stage - 1)
    np.testing.assert_array_equal(structure, np.rot90(structure))
    middle = slice(cells // 4, -cells // 4)
    assert structure[middle, middle].all() and not structure[[0, 0, -1, -1], [0, -1, 0, -1]].any()


def test_equally_near_positions_nearest_to_the_centre_stay():
    """A column beside a straight boundary is divided into its midst and its ends."""
    structure = control.structure_from_map(control.draw_shape("left", 16), (4, 4), 4)
    midst = [0, 1, 1, 0]
    np.testing.assert_array_equal(structure.reshape(4, 4) >> 1 & 1, np.transpose([midst] * 4))


@pytest.mark.parametrize(
    ("levels", "num_stages", "expected"),
    [
        (np.arange(32) % 2, 2, True),
        (np.arange(32) % 2, 4, True),
        (np.minimum(np.arange(32) % 4, 2), 3, True),
        (np.arange(32) % 3, 3, False),
        (np.arange(32) < 8, 2, False),
    ],
)
def test_whether_a_structure_follows_its_map(levels, num_stages, expected):
    for drawn in (levels.reshape(GRID).astype(int), blocks(levels.astype(int))):
        structure = control.structure_from_map(drawn, GRID, num_stages)
        assert control.follows(structure, drawn, GRID, num_stages) == expected


@pytest.mark.parametrize(
    "text",
    ["circle:1,2", "circle:a,b,c", "circle:nan,0,1", "circle:0,0,inf", "rect", "left:1", "oval"],
)
def test_unknown_shapes(text):
    with pytest.raises(UserError, match=r"unknown shape .*: choose circle:cx,cy,r, rect"):
        control.draw_shape(text, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("circle:2,2,0.1", "covers no pixel of the picture, whose sides go from 0 to 1"),
        ("circle:1e200,0,1", "covers no pixel"),
        ("circle:0.5,0.5,-0.3", "covers no pixel"),
        ("rect:0.8,0,0.2,1", "covers no pixel"),
        ("circle:0.5,0.5,30", "covers all of the picture: leave a part of it outside"),
        ("rect:0,0,1,1", "covers all"),
    ],
)
def test_shapes_outside_or_all_over_the_picture(text, message):
    with pytest.raises(UserError, match=f"^{text} {message}"):
        control.draw_shape(text, 8)


def _save(path, pixels):
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return str(path)


def test_masks_are_read_in_the_size_of_images_and_of_the_latent(tmp_path):
    for size in ((24, 24), (4, 4)):
        pixels = np.random.default_rng(0).integers(0, 3, size) * 100
        found = control.read_map(_save(tmp_path / "mask.png", pixels), 24, (4, 4))
        np.testing.assert_array_equal(found, pixels)


def test_unfit_masks_are_one_clear_line(tmp_path):
    mask = _save(tmp_path / "mask.png", np.zeros((10, 12)))
    with pytest.raises(UserError, match="is 12 x 10 pixels: a mask has to be 24 x 24.* or 4 x 4"):
        control.read_map(mask, 24, (4, 4))
    for text in (str(tmp_path / "none.png"), "oval:0.5,0.5,0.3", "a" * 300, "\0"):
        with pytest.raises(UserError, match="there is no file .*, and no such shape: .*, bottom$"):
            control.read_map(text, 24, (4, 4))


@pytest.mark.parametrize(
    ("levels", "num_stages", "message"),
    [
        (np.ones(GRID, int), 2, "one level only"),
        (np.arange(32).reshape(GRID) % 5, 3, "5 levels, and stage 2 has only 4 .* give 4 stages"),
        (np.arange(288).reshape(12, 24), 6, "288 levels, and the model's last stage has only 32"),
        (np.arange(288).reshape(12, 24), 10, "288 levels, and the model's last stage has only 32"),
        (np.ones(GRID, int), 1, "one level only"),
        (np.arange(32).reshape(GRID) % 2, 7, "choose 2 to 6"),
        (np.arange(32).reshape(GRID) % 2, 1, "choose 2 to 6"),
    ],
)
def test_maps_that_no_stage_can_follow(levels, num_stages, message):
    with pytest.raises(UserError, match=message):
        control.structure_from_map(levels, GRID, num_stages)


def test_strict_refuses_what_would_be_balanced():
    quarter = np.arange(32).reshape(GRID) < 8
    through = np.zeros((12, 24), int)
    through[:, :11] = 1
    through[:6, 11:13] = 1  # Half of the pixels, but not of the positions.
    for levels, stages, message in (
        (quarter.astype(int), 2, "25% of the picture is above"),
        (np.arange(288).reshape(12, 24) // 145, 2, "49.7% of the picture is above"),
        (through, 2, "runs through the midst of positions"),
        (np.arange(32).reshape(GRID) % 2, 3, "cluster 0 of stage 1 has one level only"),
        (np.arange(32).reshape(GRID) % 3, 3, "not balanced"),
    ):
        with pytest.raises(UserError, match=message):
            control.structure_from_map(levels, GRID, stages, strict=True)
        control.structure_from_map(levels, GRID, stages)
