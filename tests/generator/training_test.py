"""Training the generator on one batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax.errors import UserError
from nvg_jax.frozen.vit import VisionTransformer
from nvg_jax.frozen.weights import Frozen
from nvg_jax.generator import sampler
from nvg_jax.generator.model import build_generator
from nvg_jax.generator.training import GeneratorTask
from nvg_jax.tokenizer import inference
from nvg_jax.tokenizer.model import build_tokenizer
from nvg_jax.training.loop import Schedule, make_step
from tests.states import first_state


@pytest.fixture(scope="module")
def tokenizer_variables(make_tiny_config, random_variables):
    tokenizer = build_tokenizer(make_tiny_config())
    variables = random_variables(tokenizer.init_variables)
    variables["stats"]["quantizer"]["canvas_scales"] = jnp.ones(tokenizer.last_stage + 2)
    return variables


@pytest.fixture(scope="module")
def make_task(make_tiny_config, tokenizer_variables):
    def make(dinov2=None, **changes) -> GeneratorTask:
        config = make_tiny_config()
        training = config.generator.training
        training.warmup_steps, training.learning_rate = 0, 3e-3
        training.update(changes)
        return GeneratorTask(
            build_generator(config),
            build_tokenizer(config),
            tokenizer_variables,
            training,
            Schedule(8, num_steps=100, epoch_steps=5),
            sampler.Settings.from_config(config.sampling),
            dinov2,
        )

    return make


@pytest.fixture(scope="module")
def task(make_task):
    """As configured. Its step is traced and compiled once for all tests."""
    return make_task()


@pytest.fixture(scope="module")
def batch():
    image = jax.random.uniform(jax.random.key(1), (8, 8, 8, 3), minval=-1.0)
    return {"image": image, "label": jnp.arange(8, dtype=jnp.int32)}


@functools.cache
def _start(task):
    state = first_state(task, jax.random.key(2))
    return state, make_step(task, state)


def start(task):
    """The first state, a copy as a step takes its memory, and the step, which is traced once."""
    state, run = _start(task)
    return jax.tree.map(jnp.copy, state), run


def step_once(task, batch, key=3):
    state, run = start(task)
    return run(state, task.frozen, batch, jax.random.key(key))


def train(task, batch, num_steps):
    """The state after some steps, and the metrics of each."""
    (state, run), history = start(task), []
    for step in range(num_steps):
        state, metrics = run(state, task.frozen, batch, jax.random.key(step))
        history.append(jax.device_get(metrics))
    return state, history


def test_loss_falls_and_is_the_sum_of_its_terms(task, batch):
    _, history = train(task, batch, 15)
    last = history[-1]
    assert last["loss"] < history[0]["loss"]
    terms = sum(last[f"{name}_by_stage"].mean() for name in ("final", "content", "structure"))
    np.testing.assert_allclose(last["loss"], terms, rtol=1e-5)
    assert last["content_by_stage"].shape == (5,) and last["structure_by_stage"].shape == (3,)


def test_a_step_depends_on_its_key_alone(task, batch):
    first, again, other = (step_once(task, batch, key)[0] for key in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [s.params["structure"]["head"]["linear"]["kernel"] for s in (first, other)]
    assert (kernels[0] != kernels[1]).any()


def test_a_dropped_class_leaves_no_trace(task, make_task, batch):
    others = {**batch, "label": batch["label"][::-1]}
    losses = [float(step_once(task, one)[1]["loss"]) for one in (batch, others)]
    assert losses[0] != losses[1]
    always, image_keys = make_task(class_dropout=1.0), jax.random.split(jax.random.key(3), 8)
    loss, params = jax.jit(always.loss), start(task)[0].params
    losses = [
        float(loss(always.frozen, params, {**one, "key": image_keys}, jax.random.key(3))[0])
        for one in (batch, others)
    ]
    assert losses[0] == losses[1]


def test_the_tokenizer_stays_as_it_is(task, batch, tokenizer_variables):
    before = jax.tree.map(np.array, tokenizer_variables)
    step_once(task, batch)
    jax.tree.map(np.testing.assert_array_equal, before, tokenizer_variables)


def test_tokenized_images_give_the_same_loss(task, batch, tokenizer_variables):
    sequence = inference.sequences_of(task.tokenizer, tokenizer_variables, batch["image"])
    stored = {"label": batch["label"], **sequence._asdict()}
    loss, params = jax.jit(task.loss), start(task)[0].params
    image_keys = jax.random.split(jax.random.key(3), 8)
    on_the_fly, cached = (
        jax.device_get(loss(task.frozen, params, {**one, "key": image_keys}, jax.random.key(3))[1])
        for one in (batch, stored)
    )
    for name, value in on_the_fly.items():
        np.testing.assert_allclose(cached[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_microbatches_give_the_same_gradient(task, make_task, batch):
    after = []
    for one in (task, make_task(microbatches=4)):
        state, metrics = step_once(one, batch)
        # Adam's first moment is the gradient itself, up to a factor.
        after.append((jax.device_get(metrics), jax.tree.leaves(state.opt_state[1][0].mu)))
    (whole, whole_moments), (divided, divided_moments) = after
    for name, value in whole.items():
        np.testing.assert_allclose(divided[name], value, rtol=1e-4, err_msg=name)
    for one, other in zip(whole_moments, divided_moments, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(one).max() + 1e-9)


def test_repa_aligns_the_tapped_tokens(make_task, batch):
    module = VisionTransformer(14, width=32, num_heads=2, native_grid=3, layer_scale=True)
    features = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 14, 14, 3)))
    task = make_task(Frozen(module, features), repa={"weight": 0.5, "depth": 1, "hidden": 32})
    first_kernel = np.array(start(task)[0].params["projector"]["linear1"]["kernel"])
    state, history = train(task, batch, 10)
    last = history[-1]
    terms = {"final": 1.0, "content": 1.0, "structure": 1.0, "repa": 0.5}
    total = sum(weight * last[f"{name}_by_stage"].mean() for name, weight in terms.items())
    np.testing.assert_allclose(last["loss"], total, rtol=1e-5)
    assert last["repa_by_stage"].shape == (5,)
    assert last["loss/repa"] < 0.9 * history[0]["loss/repa"] and history[0]["loss/repa"] < 2.0
    assert np.any(state.params["projector"]["linear1"]["kernel"] != first_kernel)
    assert "projector" not in state.ema["params"]


def test_repa_at_a_block_that_is_not_there(make_task):
    with pytest.raises(UserError, match="repa.depth=8 is not one of the 1 blocks"):
        make_task(repa={"weight": 0.5, "depth": 8, "hidden": 32})
