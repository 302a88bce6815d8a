import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvg_jax.frozen import resize
from nvg_jax.frozen.vit import normalise

SIZES = [(5, 9), (16, 11), (7, 24), (30, 33), (1, 1)]
sides = st.integers(1, 20)
few = settings(max_examples=15)  # Every shape is compiled.


def _channels_first(images):
    return np.asarray(images).transpose(0, 3, 1, 2)


def _noise(height, width):
    return np.random.default_rng(0).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("resized", "name", "result", "tolerance"),
    [
        (resize.area, "dino.area_resize.image", "dino.area_resize.result", 1e-6),
        (
            lambda images, size: resize.bicubic(normalise(images), size),
            "dinov2.image",
            "dinov2.preprocessed",
            3e-5,
        ),
    ],
)
def test_equals_the_reference(reference, reference_image, resized, name, result, tolerance):
    """The results are every eighth pixel."""
    expected = reference[result]
    rows, columns = (8 * side for side in expected.shape[2:])
    found = _channels_first(resized(reference_image(name), (rows, columns)))
    np.testing.assert_allclose(found[:, :, ::8, ::8], expected, atol=tolerance)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["area", "bicubic"])
def test_all_sizes_equal_those_of_pytorch(mode, size):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    images = _noise(16, 11)
    options = {"align_corners": False} if mode == "bicubic" else {}
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(_channels_first(images)), size, mode=mode, **options
    )
    resized = getattr(resize, mode)(jnp.asarray(images), size)
    np.testing.assert_allclose(_channels_first(resized), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [*SIZES, (299, 299)])
def test_bilinear_equals_that_of_tensorflow_1(size):
    import tensorflow as tf  # Takes seconds, which the other tests need not wait.

    images = _noise(16, 11)
    expected = tf.compat.v1.image.resize_bilinear(images, size)
    resized = resize.bilinear_tf1(jnp.asarray(images), size)
    np.testing.assert_allclose(resized, expected.numpy(), atol=1e-5)


def test_bilinear_leaves_images_of_that_size_as_they_are():
    images = _noise(30, 299)
    np.testing.assert_array_equal(resize.bilinear_tf1(jnp.asarray(images), (30, 299)), images)


@few
@given(sides, sides, sides, sides, st.floats(-1, 1, width=32))
def test_constants_are_preserved(height, width, new_height, new_width, value):
    images = jnp.full((1, height, width, 3), value)
    for resized in (
        resize.area(images, (new_height, new_width)),
        resize.bicubic(images, (new_height, new_width)),
        resize.bilinear_tf1(images, (new_height, new_width)),
    ):
        assert resized.shape == (1, new_height, new_width, 3)
        np.testing.assert_allclose(resized, value, atol=1e-6)


@few
@given(sides, sides, st.integers(1, 5), st.integers(1, 5))
def test_area_preserves_the_mean_when_sizes_divide(height, width, rows, columns):
    images = jnp.asarray(_noise(height * rows, width * columns))
    resized = resize.area(images, (height, width))
    np.testing.assert_allclose(resized.mean((1, 2)), images.mean((1, 2)), atol=1e-6)
