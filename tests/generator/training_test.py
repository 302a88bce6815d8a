"""Training the generator on one batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax import jobs, sharding
from nvg_jax.errors import UserError
from nvg_jax.frozen.vit import VisionTransformer
from nvg_jax.frozen.weights import Frozen
from nvg_jax.generator.build import build_generator, build_tokenizer
from nvg_jax.generator.training import GeneratorTask
from nvg_jax.tokenizer.training import tokenize


@pytest.fixture
def tokenizer_variables(tiny_config, random_variables):
    tokenizer = build_tokenizer(tiny_config)
    variables = random_variables(tokenizer, tokenizer.example())
    variables["stats"]["quantizer"]["canvas_scales"] = jnp.ones(tokenizer.last_stage + 2)
    return variables


@pytest.fixture
def make_task(tiny_config, tokenizer_variables):
    tokenizer = build_tokenizer(tiny_config)

    def make(dinov2=None, **changes) -> GeneratorTask:
        training = tiny_config.generator.training
        training.warmup_steps, training.learning_rate = 0, 3e-3
        training.update(changes)
        return GeneratorTask(
            build_generator(tiny_config),
            tokenizer,
            tokenizer_variables,
            training,
            num_steps=100,
            settings=jobs.sampling_settings(tiny_config),
            dinov2=dinov2,
        )

    return make


@pytest.fixture
def batch():
    image = jax.random.uniform(jax.random.key(1), (8, 8, 8, 3), minval=-1.0)
    return {"image": image, "label": jnp.arange(8, dtype=jnp.int32)}


def fresh_state(task):
    key = jax.random.key(2)
    variables = sharding.unnamed(jax.jit(task.init_variables)(key))
    return sharding.unnamed(task.init_state(variables, key))


def test_loss_falls_and_is_the_sum_of_its_terms(make_task, batch):
    task = make_task()
    state = fresh_state(task)
    history = []
    for step in range(15):
        state, metrics = task.step(state, batch, jax.random.key(step), step)
        history.append(jax.device_get(metrics))
    last = history[-1]
    assert last["loss"] < history[0]["loss"]
    terms = sum(last[f"{name}_by_stage"].mean() for name in ("final", "content", "structure"))
    np.testing.assert_allclose(last["loss"], terms, rtol=1e-5)
    assert last["content_by_stage"].shape == (5,) and last["structure_by_stage"].shape == (3,)
    assert task.pictures(state, batch)["samples"].std() > 0


def test_a_step_depends_on_its_key_alone(make_task, batch):
    task = make_task()
    first, _ = task.step(fresh_state(task), batch, jax.random.key(3), 0)
    again, _ = task.step(fresh_state(task), batch, jax.random.key(3), 0)
    other, _ = task.step(fresh_state(task), batch, jax.random.key(4), 0)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [s.params["structure"]["head"]["linear"]["kernel"] for s in (first, other)]
    assert (kernels[0] != kernels[1]).any()


def test_a_dropped_class_leaves_no_trace(make_task, batch):
    others = {**batch, "label": batch["label"][::-1]}
    for changes, same in (({}, False), ({"class_dropout": 1.0}, True)):
        task = make_task(**changes)
        losses = [
            float(task.step(fresh_state(task), b, jax.random.key(3), 0)[1]["loss"])
            for b in (batch, others)
        ]
        assert (losses[0] == losses[1]) == same


def test_the_tokenizer_stays_as_it_is(make_task, batch, tokenizer_variables):
    before = jax.tree.map(np.array, tokenizer_variables)
    task = make_task()
    task.step(fresh_state(task), batch, jax.random.key(3), 0)
    jax.tree.map(np.testing.assert_array_equal, before, tokenizer_variables)


def test_tokenized_images_give_the_same_loss(make_task, batch, tokenizer_variables):
    task = make_task()
    sequence, _ = tokenize(task.tokenizer, tokenizer_variables, batch["image"])
    stored = {"label": batch["label"], **sequence._asdict()}
    on_the_fly, cached = (
        jax.device_get(task.step(fresh_state(task), b, jax.random.key(3), 0)[1])
        for b in (batch, stored)
    )
    for name, value in on_the_fly.items():
        np.testing.assert_allclose(cached[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_microbatches_give_the_same_gradient(make_task, batch):
    after = []
    for microbatches in (1, 4):
        task = make_task(microbatches=microbatches)
        state, metrics = task.step(fresh_state(task), batch, jax.random.key(3), 0)
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
    state = fresh_state(task)
    first_kernel = np.array(state.params["projector"]["linear1"]["kernel"])
    history = []
    for step in range(10):
        state, metrics = task.step(state, batch, jax.random.key(step), step)
        history.append(jax.device_get(metrics))
    last = history[-1]
    terms = {"final": 1.0, "content": 1.0, "structure": 1.0, "repa": 0.5}
    total = sum(weight * last[f"{name}_by_stage"].mean() for name, weight in terms.items())
    np.testing.assert_allclose(last["loss"], total, rtol=1e-5)
    assert last["repa_by_stage"].shape == (5,)
    assert last["repa"] < 0.9 * history[0]["repa"] and history[0]["repa"] < 2.0
    assert np.any(state.params["projector"]["linear1"]["kernel"] != first_kernel)
    assert "projector" not in state.ema["params"]


def test_repa_at_a_block_that_is_not_there(make_task):
    with pytest.raises(UserError, match="repa.depth=8 is not one of the 1 blocks"):
        make_task(repa={"weight": 0.5, "depth": 8, "hidden": 32})
