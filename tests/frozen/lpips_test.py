import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax.frozen import weights
from nvg_jax.frozen.lpips import LPIPS

NETWORK = "lpips"
_exact = LPIPS(precision="float32")
_apply = jax.jit(_exact.apply)


@jax.jit
def _gradients(variables, a, b):
    return jax.grad(lambda a, b: _exact.apply(variables, a, b).sum(), (0, 1))(a, b)


def _images(seed, height=16, width=16):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.uniform(-1, 1, (2, height, width, 3)), jnp.float32)


def test_distance_equals_the_reference(variables, reference, reference_image):
    found = _apply(variables, reference_image("lpips.image_a"), reference_image("lpips.image_b"))
    np.testing.assert_allclose(found, reference["lpips.distance"], rtol=1e-5)


@pytest.mark.parametrize(("module", "expected"), [(LPIPS(), "HIGH"), (_exact, "HIGHEST")])
def test_every_convolution_has_the_precision(variables, module, expected):
    jaxpr = str(jax.make_jaxpr(module.apply)(variables, _images(0), _images(1)))
    assert set(re.findall(r"Precision\.(\w+)", jaxpr)) == {expected}
    assert "None" not in re.findall(r"precision=(\w+)", jaxpr)


def test_distance_is_symmetric_and_zero_only_for_equal_images(variables):
    a, b = _images(0), _images(1)
    np.testing.assert_allclose(_apply(variables, a, a), 0, atol=1e-12)
    np.testing.assert_allclose(_apply(variables, a, b), _apply(variables, b, a), rtol=1e-6)
    assert (_apply(variables, a, b) > 0).all()


def test_images_of_other_shapes_each_have_their_own_distance(variables):
    a, b = _images(0, 21, 34), _images(1, 21, 34)
    both = _apply(variables, a, b)
    second_only = _apply(variables, a, a.at[1].set(b[1]))
    np.testing.assert_allclose(second_only, [0, both[1]], rtol=1e-5, atol=1e-12)


def test_gradient_reduces_the_distance(variables):
    a, b = _images(0), _images(1)
    gradient, _ = _gradients(variables, a, b)
    step = 1e-2 * gradient / jnp.abs(gradient).max()
    assert (_apply(variables, a - step, b) < _apply(variables, a, b)).all()


@pytest.mark.parametrize("scale", [1.0, 0.0, 1e-25])
def test_gradient_is_finite_for_equal_images_and_without_features(scale):
    """1e-25: features whose squares are zero in float32, although they are not."""
    variables = weights.load("lpips", random=True)
    variables["params"]["vgg"]["conv0"]["kernel"] *= scale
    for pair in ((_images(0), _images(0)), (_images(0), _images(1))):
        assert all(jnp.isfinite(found).all() for found in _gradients(variables, *pair))
