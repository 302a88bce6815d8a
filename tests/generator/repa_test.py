"""The alignment with frozen features against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from nvg_jax import sharding
from nvg_jax.generator.repa import Projector, misalignment


def test_misalignment_is_one_minus_the_cosine():
    random = np.random.default_rng(0)
    projected = random.standard_normal((2, 3, 4, 5)).astype(np.float32)
    features = random.standard_normal((2, 3, 4, 5)).astype(np.float32)
    cosine = np.sum(projected * features, -1) / (
        np.linalg.norm(projected, axis=-1) * np.linalg.norm(features, axis=-1)
    )
    expected = 1 - cosine.mean(axis=(0, 2))
    np.testing.assert_allclose(
        misalignment(jnp.asarray(projected), jnp.asarray(features)), expected, rtol=1e-5
    )


def test_zero_tokens_have_a_finite_gradient():
    features = jnp.ones((1, 1, 2, 5))
    gradient = jax.grad(lambda x: misalignment(x, features).sum())(jnp.zeros((1, 1, 2, 5)))
    assert np.isfinite(gradient).all()


def test_projector_is_three_layers_with_silu():
    projector, x = Projector(hidden=7, features=3), jnp.linspace(-2, 2, 8).reshape(2, 4)
    params = sharding.unnamed(projector.init(jax.random.key(0), x))["params"]
    for layer in (1, 2, 3):
        x = x @ params[f"linear{layer}"]["kernel"] + params[f"linear{layer}"]["bias"]
        x = x / (1 + np.exp(-x)) if layer < 3 else x
    actual = projector.apply({"params": params}, jnp.linspace(-2, 2, 8).reshape(2, 4))
    np.testing.assert_allclose(actual, x, atol=1e-5)
