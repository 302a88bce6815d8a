"""Training the tokenizer on one batch, and measuring its canvases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax.models.build import build_tokenizer
from nvg_jax.training.tokenizer_task import TokenizerTask, canvas_moments, with_canvas_scales


@pytest.fixture
def task(tiny_config):
    training = tiny_config.tokenizer.training
    training.warmup_steps, training.warm_up_epochs = 0, 1.0
    return TokenizerTask(build_tokenizer(tiny_config), training, num_steps=100, epoch_steps=5)


@pytest.fixture
def batch():
    return {"image": jax.random.uniform(jax.random.key(0), (8, 8, 8, 3), minval=-1.0)}


def test_the_codebook_warms_up_for_the_first_epochs(task):
    assert task.warm_up_steps == 5


def test_loss_falls_and_metrics_are_complete(task, batch):
    state = task.init_state(task.init_variables(jax.random.key(1)))
    history = []
    for step in range(20):
        state, metrics = task.step(state, batch, jax.random.key(2), step)
        history.append(jax.device_get(metrics))
    assert int(state.step) == 20
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    last = history[-1]
    np.testing.assert_allclose(last["loss"], last["l1"] + last["quantization"], rtol=1e-5)
    # 8 images: 8 tokens at stage 0, 16 at stage 1, ...
    np.testing.assert_array_equal(last["token_counts"].sum(1), [8, 16, 32, 64, 128])
    assert last["canvas_error_by_stage"].shape == (5,)
    assert last["canvas_error_by_stage"][-1] == 0.0


def test_warm_up_moves_codes_that_no_cluster_chose(task, batch):
    before = task.init_state(task.init_variables(jax.random.key(1)))
    codes = np.array(before.params["quantizer"]["codebook"])
    far = codes.copy()
    far[0] = 1.5  # Farther from all data than the other codes.

    def moved(step):
        variables = task.init_variables(jax.random.key(1))
        variables["params"]["quantizer"]["codebook"] = jnp.asarray(far)
        state, metrics = task.step(task.init_state(variables), batch, jax.random.key(2), step)
        assert metrics["token_counts"][:, 0].sum() == 0
        return np.abs(state.params["quantizer"]["codebook"][0] - far[0]).max()

    assert moved(step=0) > 0.0
    assert moved(step=task.warm_up_steps) == 0.0


def test_canvas_scales_are_one_over_the_standard_deviation(task, batch):
    variables = task.init_variables(jax.random.key(1))
    halves = batch["image"][:4], batch["image"][4:]
    moments = [jax.device_get(canvas_moments(task.tokenizer, variables, half)) for half in halves]
    scales = with_canvas_scales(variables, moments)["stats"]["quantizer"]["canvas_scales"]
    _, canvases = task.tokenizer.apply(variables, batch["image"], method="tokenize")
    assert scales[0] == 1.0
    np.testing.assert_allclose(scales[1:], 1 / np.std(canvases, axis=(0, 2, 3))[1:], rtol=1e-4)


def test_pictures_show_the_batch(task, batch):
    state = task.init_state(task.init_variables(jax.random.key(1)))
    picture = task.pictures(state, batch)["reconstructions"]
    assert picture.dtype == np.uint8 and picture.std() > 0
