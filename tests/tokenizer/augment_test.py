"""What the discriminator sees, against the ranges and formulas of the augmentations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax.tokenizer import augment

KEY = jax.random.key(0)


@pytest.fixture
def images():
    return jax.random.uniform(jax.random.key(1), (64, 16, 16, 3), minval=-1.0)


def test_translation_moves_whole_pixels_and_fills_with_zeros(images):
    moved = np.asarray(augment.translate(images, KEY, 1 / 8))
    padded = np.pad(np.asarray(images), ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for image, result in zip(padded, moved, strict=True):
        fits = [
            (dy, dx)
            for dy in range(5)
            for dx in range(5)
            if np.array_equal(image[dy : dy + 16, dx : dx + 16], result)
        ]
        assert len(fits) == 1
        seen.update(fits)
    assert len(seen) > 15 and {dy for dy, _ in seen} == {dx for _, dx in seen} == set(range(5))


def test_brightness_adds_one_number_to_each_image(images):
    added = np.asarray(augment.shift_brightness(images, KEY) - images)
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1, :1], added.shape), atol=1e-5)
    assert -0.5 <= added.min() < -0.4 and 0.4 < added.max() < 0.5


def test_saturation_keeps_the_grey_and_scales_the_colour(images):
    result = np.asarray(augment.scale_saturation(images, KEY))
    grey = np.asarray(images).mean(-1, keepdims=True)
    np.testing.assert_allclose(result.mean(-1, keepdims=True), grey, atol=1e-5)
    factor = (result - grey).std((1, 2, 3)) / (np.asarray(images) - grey).std((1, 2, 3))
    assert 0 <= factor.min() < 0.2 and 1.8 < factor.max() < 2.0


def test_contrast_keeps_the_mean_and_scales_the_rest(images):
    result = np.asarray(augment.scale_contrast(images, KEY))
    before = np.asarray(images)
    np.testing.assert_allclose(result.mean((1, 2, 3)), before.mean((1, 2, 3)), atol=1e-5)
    factor = result.std((1, 2, 3)) / before.std((1, 2, 3))
    assert 0.5 <= factor.min() < 0.6 and 1.4 < factor.max() < 1.5


def test_cut_out_clears_a_rectangle_centred_in_the_image(images):
    cleared = np.all(np.asarray(augment.cut_out(images, KEY, 0.2)) == 0, axis=-1)
    for mask in cleared:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        for line in (rows, columns):
            # 3 pixels, fewer only where the rectangle reaches over the border.
            assert len(line) == 3 or (1 < len(line) < 3 and (line[0] == 0 or line[-1] == 15))
        np.testing.assert_array_equal(mask, np.outer(mask.any(1), mask.any(0)))
    assert cleared.any(axis=(0, 1)).all() and cleared.any(axis=(0, 2)).all()


def test_all_together_are_differentiable_and_random_by_image(images):
    same = jnp.broadcast_to(images[:1], images.shape)
    result = np.asarray(augment.augment(same, KEY))
    assert len({image.tobytes() for image in result}) == len(images)
    np.testing.assert_array_equal(result, augment.augment(same, KEY))
    gradient = jax.grad(lambda x: jnp.sum(augment.augment(x, KEY) ** 2))(images)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
