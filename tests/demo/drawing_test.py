"""Maps and masks that are drawn on the page."""

import numpy as np
import pytest

from nvg_jax import control
from nvg_jax.demo import drawing
from nvg_jax.errors import UserError

GRID = (4, 4)


@pytest.mark.parametrize("name", drawing.EXAMPLES)
def test_examples_can_be_balanced(name):
    picture = drawing.example(name, 256)
    assert picture.shape == (256, 256, 3)
    count = len(np.unique(picture.reshape(-1, 3), axis=0))
    assert count in (2, 4)
    levels = drawing.levels_of(picture, GRID, count)
    assert levels.shape == (16, 16) and set(np.unique(levels)) == set(range(count))
    stages = control.stages_for(levels)
    structure = control.structure_from_map(levels, GRID, stages)
    after = drawing.levels_after(levels, structure, GRID, stages)
    np.testing.assert_array_equal(np.bincount(after.ravel()), [256 // count] * count)
    # What needs no balancing stays as it is drawn.
    if control.follows(structure, levels, GRID, stages):
        np.testing.assert_array_equal(after, levels)
    else:
        assert (after != levels).any()


def test_the_level_of_a_place_is_that_of_most_of_its_pixels():
    picture = np.zeros((160, 160, 4), np.uint8)
    picture[:, :86, :3] = 250, 235, 40  # The ninth column has 6 of 10 pixels.
    picture[:, 86:88, :3] = 125, 115, 20  # A soft edge.
    expected = np.tile(np.arange(16) < 9, (16, 1))
    np.testing.assert_array_equal(drawing.levels_of(picture, GRID, 2), expected)
    np.testing.assert_array_equal(drawing.levels_of(picture, GRID, 4), 3 * expected)
    with pytest.raises(UserError, match="draw a map first"):
        drawing.levels_of(None, GRID, 2)


def test_three_levels_share_four_clusters():
    levels = np.repeat(np.repeat([[0, 1], [2, 2]], 8, axis=0), 8, axis=1)
    structure = control.structure_from_map(levels, GRID, 3)
    np.testing.assert_array_equal(drawing.levels_after(levels, structure, GRID, 3), levels)


def test_a_mask_is_what_is_painted_for_the_most_part():
    layer = np.zeros((256, 256, 4), np.uint8)
    layer[:40, :64, 3] = 180  # 8 pixels of the image, one of them by a quarter.
    other = np.zeros((32, 32, 4), np.uint8)  # Of another size.
    other[-4:, -4:, 3] = 255
    expected = np.zeros((8, 8), bool)
    expected[0, :2] = expected[7, 7] = True
    np.testing.assert_array_equal(drawing.mask_of([layer, other], 8), expected)
    for nothing in (None, [], [np.zeros_like(layer)], [layer // 2]):
        with pytest.raises(UserError, match="brush over what should change"):
            drawing.mask_of(nothing, 8)


def test_the_canvas_is_a_multiple_of_the_image():
    assert [drawing.side(size) for size in (16, 32, 96, 256, 512)] == [256, 256, 288, 256, 512]
