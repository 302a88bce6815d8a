"""The average of the parameters against its recursion."""

import jax.numpy as jnp
import numpy as np
import optax

from nvg_jax.training.state import TrainState


def test_average_follows_the_parameters():
    sgd = optax.sgd(1.0)
    variables = {"params": {"w": jnp.array(0.0)}, "stats": {"s": jnp.array(7.0)}}
    state = TrainState.create(variables, sgd)
    parameter, average = 0.0, 0.0
    for step in range(20):
        state = state.update({"w": jnp.array(-1.0)}, sgd, ema_decay=0.5)
        parameter += 1.0
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * parameter
    assert int(state.step) == 20
    np.testing.assert_allclose(state.params["w"], parameter)
    np.testing.assert_allclose(state.ema["params"]["w"], average, rtol=1e-5)
    np.testing.assert_array_equal(state.ema["stats"]["s"], 7.0)


def test_helpers_are_trained_but_not_kept():
    sgd = optax.sgd(1.0)
    state = TrainState.create({"params": {"w": jnp.array(0.0)}}, sgd, {"helper": jnp.array(0.0)})
    state = state.update({"w": jnp.array(-1.0), "helper": jnp.array(-2.0)}, sgd, ema_decay=0.5)
    assert state.params == {"w": 1.0, "helper": 2.0} and set(state.ema["params"]) == {"w"}
