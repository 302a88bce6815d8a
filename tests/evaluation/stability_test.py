"""The adjusted Rand index against scikit-learn, and what disturbances do to images."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from nvg_jax import granularity
from nvg_jax.evaluation import stability

seeds = st.integers(0, 2**32 - 1)


def structures(rng, count, length=16):
    return np.stack([rng.permutation(length) for _ in range(count)]).astype(np.int32)


@given(seeds, st.integers(2, 40), st.integers(1, 9), st.integers(1, 9))
def test_the_index_is_that_of_scikit_learn(seed, length, most, most_other):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(most, size=length), rng.integers(most_other, size=length)
    found = stability.adjusted_rand_index(a, b)
    np.testing.assert_allclose(found, adjusted_rand_score(a, b), atol=1e-12)
    assert stability.adjusted_rand_index(a, a) == 1
    # Whatever the clusters are called.
    assert stability.adjusted_rand_index(a, rng.permutation(most_other)[b]) == found


@given(seeds, st.sampled_from([(4, 4), (2, 4)]), st.integers(0, 3))
def test_agreement_is_of_the_columns_that_both_have(seed, grid, shift):
    rng = np.random.default_rng(seed)
    length = grid[0] * grid[1]
    one, other = structures(rng, 3, length), structures(rng, 3, length)
    found = stability.agreement(one, other, grid, shift)
    last_stage = granularity.last_stage(length)
    assert found.shape == (3, last_stage + 1) and (found[:, [0, -1]] == 1).all()
    for image, stage in np.ndindex(found.shape):
        a, b = (x[image].reshape(grid) // 2 ** (last_stage - stage) for x in (one, other))
        pairs = [(a[r, c], b[r, c + shift]) for r, c in np.ndindex(grid) if c + shift < grid[1]]
        expected = adjusted_rand_score(*zip(*pairs, strict=True))
        np.testing.assert_allclose(found[image, stage], expected, atol=1e-12)


@given(seeds)
def test_children_that_change_places_change_nothing(seed):
    rng = np.random.default_rng(seed)
    one = structures(rng, 4)
    other = one.copy()
    for stage in range(4):  # Each cluster of it keeps its children in their order, or does not.
        turned = rng.integers(2, size=2**stage)[granularity.labels_at(other, stage)]
        other ^= (turned << (3 - stage)).astype(np.int32)
    np.testing.assert_array_equal(np.sort(other), np.sort(one))
    np.testing.assert_array_equal(stability.agreement(one, other, (4, 4)), 1)


def test_random_structures_agree_as_by_chance():
    one, other = structures(np.random.default_rng(0), 1_000, 64).reshape(2, 500, 64)
    for shift in (0, 1):
        found = stability.agreement(one, other, (8, 8), shift)[:, 1:-1]
        error = found.std(axis=0) / 500**0.5
        assert (np.abs(found.mean(axis=0)) < 3 * error).all() and error.max() < 0.01


def test_noise_has_its_standard_deviation_and_is_each_images_own():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 12, 3), np.uint8)
    np.testing.assert_array_equal(stability.with_noise(images, 0.0, 3), images)
    grey = np.full((5, 64, 64, 3), 128, np.uint8)
    noisy = stability.with_noise(grey, 8.0, 3)
    np.testing.assert_array_equal(noisy[:2], stability.with_noise(grey[:2], 8.0, 3))
    noise = noisy.astype(int) - 128
    np.testing.assert_allclose(noise.std(axis=(1, 2, 3)), 8, rtol=0.03)
    assert np.abs(noise.mean()) < 0.1
    assert np.abs(np.corrcoef(noise.reshape(5, -1)) - np.eye(5)).max() < 0.05
    bright = stability.with_noise(np.full_like(grey, 255), 1e3, 3)  # Clipped, not wrapped around.
    assert set(np.unique(bright)) >= {0, 255} and (bright == 255).mean() > 0.45


def test_a_worse_jpeg_is_further_from_its_image():
    ramp = np.linspace(0, 200, 24).astype(np.uint8)
    images = np.broadcast_to(ramp[:, None] + ramp[None] // 5, (2, 3, 24, 24)).transpose(0, 2, 3, 1)
    found = [stability.as_jpeg(images, quality) for quality in (95, 40, 1)]
    assert all(x.shape == images.shape and x.dtype == np.uint8 for x in found)
    errors = [np.abs(x.astype(int) - images).mean() for x in found]
    assert 0 < errors[0] < 3 and errors[0] < errors[1] < errors[2]


@given(st.integers(0, 11))
def test_what_comes_in_is_mirrored(pixels):
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 12, 3), np.uint8)
    moved = stability.shifted(images, pixels)
    np.testing.assert_array_equal(moved[:, :, pixels:], images[:, :, : 12 - pixels])
    np.testing.assert_array_equal(moved[:, :, :pixels], images[:, :, :pixels][:, :, ::-1])
