import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax.frozen import weights
from nvg_jax.frozen.inception import Inception

NETWORK = "inception"


@pytest.fixture(scope="module")
def seen(variables, reference_image):
    """Features of the reference's pair of images, and what `Mixed_6d.branch1x1` gives for it."""
    return _apply(variables, reference_image("inception.image"))


@jax.jit
def _apply(variables, images):
    inner = ("Mixed_6d", "branch1x1")
    features, captured = Inception().apply(
        variables, images, capture_intermediates=lambda module, _: module.path == inner
    )
    (activation,) = functools.reduce(dict.get, inner, captured["intermediates"])["__call__"]
    return features, activation


def _assert_near(found, expected):
    """Errors relative to the largest feature: those near 0 are differences of large numbers."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_features_equal_the_reference(seen, reference):
    features, _ = seen
    assert features.pool.shape[1] == 2048 and features.logits.shape[1] == 1008
    _assert_near(features.pool[:, ::8], reference["inception.pool"])
    _assert_near(features.logits[:, ::8], reference["inception.logits"])


def test_features_of_images_of_another_size_equal_the_reference(
    variables, reference, reference_image
):
    features, _ = _apply(variables, reference_image("inception.image256"))
    _assert_near(features.pool[:, ::8], reference["inception.pool256"])


def test_spatial_features_are_the_first_channels_at_each_position_row_by_row(seen):
    features, activation = seen
    assert activation.shape[1:] == (17, 17, 192)
    positions = [activation[:, y, x, :7] for y in range(17) for x in range(17)]
    np.testing.assert_array_equal(features.spatial, np.concatenate(positions, axis=1))
    assert (features.spatial >= 0).all() and features.spatial.std() > 0.1


def test_features_do_not_depend_on_the_rest_of_the_batch(variables, seen, reference_image):
    features, _ = seen
    image, neighbour = reference_image("inception.image")[:2]
    for place, batch in enumerate([(image, -neighbour), (-neighbour, image)]):
        others, _ = _apply(variables, jnp.stack(batch))
        for found, expected in zip(others, features, strict=True):
            _assert_near(found[place], expected[0])
            assert (found[1 - place] != expected[1]).any()


@pytest.mark.slow  # Compiling 95 random kernels takes half a minute.
def test_random_weights_give_features_of_a_sane_scale(reference_image):
    variables = weights.load("inception", random=True)
    assert jax.tree.structure(variables) == jax.tree.structure(weights.abstract("inception"))
    features, _ = _apply(variables, reference_image("inception.image"))
    for found in features:
        assert 0.1 < found.std() < 10
