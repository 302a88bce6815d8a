"""Pixels and images in [-1, 1]."""

import jax.numpy as jnp
import numpy as np

from nvg_jax import pixels

EVERY_VALUE = np.arange(256, dtype=np.uint8)


def test_every_pixel_value_survives_the_way_there_and_back():
    images = pixels.from_uint8(EVERY_VALUE)
    assert images.dtype == np.float32 and images.min() == -1 and images.max() == 1
    np.testing.assert_array_equal(pixels.to_uint8(images), EVERY_VALUE)
    np.testing.assert_array_equal(pixels.to_uint8(jnp.asarray(images)), EVERY_VALUE)


def test_devices_make_the_numbers_that_numpy_makes():
    images = pixels.from_uint8(jnp.asarray(EVERY_VALUE))
    np.testing.assert_allclose(images, pixels.from_uint8(EVERY_VALUE), rtol=0, atol=2e-7)
    np.testing.assert_array_equal(pixels.to_uint8(images), EVERY_VALUE)


def test_values_outside_are_clipped():
    np.testing.assert_array_equal(pixels.to_uint8(np.array([-3.0, 3.0])), [0, 255])


def test_as_stored_is_what_a_file_gives_back():
    images = jnp.linspace(-1.2, 1.2, 1001)
    stored = pixels.from_uint8(np.asarray(pixels.to_uint8(images)))
    np.testing.assert_allclose(pixels.as_stored(images), stored, atol=1e-6)
