"""Gradients of micro-batches against those of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nvg_jax.training import accumulation


def loss_fn(params, batch, key):
    predicted = jnp.tanh(batch["x"] @ params["w"])
    loss = jnp.mean((predicted - batch["y"]) ** 2)
    aux = {
        "loss": loss,
        "positive": jnp.sum(predicted > 0, axis=0),
        "noise": jax.random.normal(key),
    }
    return loss, aux


@settings(max_examples=6)
@given(parts=st.sampled_from([2, 3, 6]), seed=st.integers(0, 2**31))
def test_parts_add_up_to_the_whole(parts, seed):
    random = np.random.default_rng(seed)
    params = {"w": random.standard_normal((4, 2)).astype(np.float32)}
    batch = {"x": random.standard_normal((6, 4)), "y": random.standard_normal((6, 2))}
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch)
    key = jax.random.key(seed)
    whole, expected = accumulation.gradients(loss_fn, params, batch, key, 1)
    divided, aux = accumulation.gradients(loss_fn, params, batch, key, parts)
    np.testing.assert_allclose(divided["w"], whole["w"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(aux["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_array_equal(aux["positive"], expected["positive"])


def test_each_part_has_a_key_of_its_own():
    batch = {"x": jnp.ones((4, 4)), "y": jnp.ones((4, 2))}
    key, params = jax.random.key(0), {"w": jnp.ones((4, 2))}
    _, aux = accumulation.gradients(loss_fn, params, batch, key, 4)
    draws = [jax.random.normal(k) for k in jax.random.split(key, 4)]
    np.testing.assert_allclose(aux["noise"], np.mean(draws), rtol=1e-5)
