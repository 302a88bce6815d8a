"""Schedules against their formula; weight decay against the rank of the tensors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import nvg_d12, nvg_d16, nvg_d20, nvg_d24
from nvg_jax.training import loop, optimizer


def training_config(**changes) -> ConfigDict:
    config = nvg_d24.get_config().generator.training
    config.update(changes)
    return config


def test_warm_up_plateau_and_linear_decay():
    config = training_config(warmup_steps=100, decay_start=0.8, decay_to=0.1)
    rate = optimizer.learning_rate(config, 1000)
    steps = np.array([0, 50, 100, 500, 800, 900, 1000])
    fraction = [0.005, (0.005 + 1) / 2, 1, 1, 1, 0.55, 0.1]
    np.testing.assert_allclose([rate(s) for s in steps], 3e-4 * np.array(fraction), rtol=1e-5)


@pytest.mark.parametrize(
    "config, epochs, decay_epoch, last",
    [
        (nvg_d12, 40, 32, 0.1),
        (nvg_d16, 200, 160, 0.1),
        (nvg_d20, 250, 200, 0.1),
        (nvg_d24, 350, 200, 0.01),
    ],
)
def test_the_papers_schedules_on_imagenet(config, epochs, decay_epoch, last):
    training = config.get_config().generator.training
    schedule = loop.Schedule.create(training, 1_281_167)
    assert (schedule.batch_size, schedule.epoch_steps) == (768, 1668)
    assert schedule.num_steps == epochs * 1668
    rate = optimizer.learning_rate(training, schedule.num_steps)
    decay_at = decay_epoch * 1668
    np.testing.assert_allclose(rate(0), 0.005 * 3e-4, rtol=1e-5)
    np.testing.assert_allclose([rate(1000), rate(decay_at)], 3e-4, rtol=1e-5)
    halfway = (decay_at + schedule.num_steps) / 2
    np.testing.assert_allclose(rate(halfway), 3e-4 * (1 + last) / 2, rtol=1e-4)
    np.testing.assert_allclose(rate(schedule.num_steps), last * 3e-4, rtol=1e-4)


def test_cosine_decay():
    config = training_config(
        schedule="cosine", warmup_steps=0, decay_start=0.0, decay_to=0.0, learning_rate=1e-4
    )
    rate = optimizer.learning_rate(config, 100)
    expected = [1e-4 * (1 + np.cos(np.pi * s / 100)) / 2 for s in range(0, 101, 10)]
    np.testing.assert_allclose([rate(s) for s in range(0, 101, 10)], expected, atol=1e-10)


def test_weight_decay_acts_on_tensors_of_rank_two_and_more(golden_generator, golden_tokenizer):
    """Ranks are those of the release, where neither blocks nor refiners are stacked."""
    for golden in (golden_generator, golden_tokenizer):
        params = golden.variables["params"]
        for path, decays in jax.tree_util.tree_leaves_with_path(optimizer.decays(params)):
            names = [key.key for key in path]
            leaf = params
            for name in names:
                leaf = leaf[name]
            stacked = "blocks" in names or names[-1].startswith("refiner")
            split = "linear1" in names  # Its parts have an axis of their own.
            assert decays == (leaf.ndim - stacked - split >= 2), names


def test_only_decay_moves_parameters_without_gradients():
    config = training_config(weight_decay=0.1, warmup_steps=0, learning_rate=0.5)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2,))}
    adamw = optimizer.create(config, 10)
    updates, _ = adamw.update(jax.tree.map(jnp.zeros_like, params), adamw.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(updates["bias"], 0.0)


def test_gradients_are_clipped_to_the_global_norm():
    config = training_config(clip_norm=1.0)
    params = {"kernel": jnp.zeros((2, 2))}
    adamw = optimizer.create(config, 10)
    large, _ = adamw.update({"kernel": jnp.full((2, 2), 100.0)}, adamw.init(params), params)
    state = adamw.update({"kernel": jnp.full((2, 2), 100.0)}, adamw.init(params), params)[1]
    momentum = jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu"))
    mu = next(x.mu["kernel"] for x in momentum if hasattr(x, "mu"))
    np.testing.assert_allclose(mu, 0.1 * 0.5, rtol=1e-5)  # (1 - b1) of a gradient of norm 1.
    assert np.isfinite(large["kernel"]).all()
