"""Agreement of structure maps with masks against every possible assignment."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvg_jax.errors import UserError
from nvg_jax.evaluation import segmentation

seeds = st.integers(0, 2**32 - 1)
GRIDS = {4: (2, 2), 8: (2, 4)}


def random_scenes(seed, num_positions, num_images=3, block=(2, 3)):
    """Structures and masks, with more or less of them object."""
    rng = np.random.default_rng(seed)
    structure = np.stack([rng.permutation(num_positions) for _ in range(num_images)])
    height, width = np.multiply(GRIDS[num_positions], block)
    masks = rng.random((num_images, height, width)) < rng.random((num_images, 1, 1))
    return structure.astype(np.int32), masks


def pixels_of(labels, grid, height, width):
    """Every pixel's label."""
    return np.kron(labels.reshape(grid), np.ones((height // grid[0], width // grid[1]), int))


def plain_iou(a, b):
    return (a & b).sum() / (a | b).sum() if (a | b).any() else 1.0


def exhaustive_miou(structure, mask, grid, stage):
    """The best of all 2^(2^stage) assignments, one after the other."""
    labels = pixels_of(structure // (len(structure) >> stage), grid, *mask.shape)
    best = 0.0
    for assignment in itertools.product([False, True], repeat=2**stage):
        found = np.array(assignment)[labels]
        best = max(best, (plain_iou(found, mask) + plain_iou(~found, ~mask)) / 2)
    return best


@given(seeds, st.sampled_from([4, 8]))
def test_structure_miou_is_that_of_the_best_assignment(seed, num_positions):
    structure, masks = random_scenes(seed, num_positions)
    grid = GRIDS[num_positions]
    actual = segmentation.structure_miou(structure, masks, grid)
    expected = [
        [exhaustive_miou(leaves, mask, grid, stage) for stage in range(actual.shape[1])]
        for leaves, mask in zip(structure, masks, strict=True)
    ]
    assert actual.dtype == np.float64 and actual.shape == (3, {4: 3, 8: 4}[num_positions])
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@given(seeds, st.integers(1, 3))
def test_clusters_that_make_up_the_mask_give_one_from_their_stage_on(seed, stage):
    rng = np.random.default_rng(seed)
    structure, masks = random_scenes(seed, 8, num_images=1)
    # One cluster of the stage, which no coarser stage has for itself.
    chosen = structure[0] // (8 >> stage) == rng.integers(2**stage)
    masks[0] = pixels_of(chosen, (2, 4), *masks.shape[1:])
    (miou,) = segmentation.structure_miou(structure, masks, (2, 4))
    np.testing.assert_array_equal(miou[stage:], 1.0)
    assert (miou[:stage] < 1).all()


@pytest.mark.parametrize(("height", "width"), [(5, 4), (4, 5)])
def test_masks_that_do_not_fit_the_positions(height, width):
    masks = np.zeros((1, height, width), bool)
    with pytest.raises(UserError, match=f"masks of {height}x{width} pixels cannot be cut into 2x2"):
        segmentation.structure_miou(np.array([[0, 1, 2, 3]]), masks, (2, 2))


@given(seeds)
def test_iou_equals_the_definition(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 4, 3, 5)) < rng.random((2, 4, 1, 1))
    expected = [plain_iou(*pair) for pair in zip(a, b, strict=True)]
    np.testing.assert_allclose(segmentation.iou(a, b), expected, rtol=1e-12)


def test_iou_of_empty_masks():
    empty, full = np.zeros((1, 4, 4), bool), np.ones((1, 4, 4), bool)
    assert segmentation.iou(empty, empty) == 1
    assert segmentation.iou(empty, full) == 0


@given(seeds, st.integers(1, 6), st.integers(1, 4))
def test_segments_against_loops_over_pixels(seed, num_clusters, num_segments):
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_clusters, size=(5, 6)) * 7
    mask = rng.integers(num_segments, size=(5, 6)) + 3
    pixels = list(np.ndindex(5, 6))
    taken = {}
    for label in np.unique(labels):
        inside = sorted(mask[labels == label])  # Of equally frequent ones the smallest.
        taken[label] = max(inside, key=inside.count)
    guess = np.array([[taken[label] for label in row] for row in labels])
    ious = [plain_iou(guess == segment, mask == segment) for segment in np.unique(mask)]

    def edges(of):
        after = [(y, x, y + dy, x + dx) for y, x in pixels for dy, dx in ((0, 1), (1, 0))]
        return {(y, x) for y, x, v, u in after if v < 5 and u < 6 and of[y, x] != of[v, u]}

    reached = [
        any(max(abs(y - v), abs(x - u)) <= segmentation.BOUNDARY_REACH for v, u in edges(labels))
        for y, x in edges(mask)
    ]
    expected = (np.mean(guess == mask), np.mean(ious), np.mean(reached) if reached else 1.0)
    np.testing.assert_allclose(segmentation.segments(labels, mask), expected, rtol=1e-12)


@given(seeds)
def test_segments_that_are_clusters_are_told_and_more_clusters_tell_no_less(seed):
    rng = np.random.default_rng(seed)
    mask, fine = rng.integers(3, size=(2, 8, 8))
    assert segmentation.segments(mask, mask) == (1.0, 1.0, 1.0)
    assert segmentation.segments(3 * mask + fine, mask) == (1.0, 1.0, 1.0)
    assert segmentation.segments(fine, mask).accuracy >= np.mean(
        mask == np.bincount(mask.ravel()).argmax()
    )
