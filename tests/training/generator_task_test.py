"""Training the generator on one batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax import jobs
from nvg_jax.models.build import build_generator, build_tokenizer
from nvg_jax.training.generator_task import GeneratorTask


@pytest.fixture
def make_task(tiny_config):
    tokenizer = build_tokenizer(tiny_config)
    tokenizer_variables = jax.jit(tokenizer.init)(jax.random.key(0), tokenizer.example())

    def make(**changes) -> GeneratorTask:
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
        )

    return make


@pytest.fixture
def batch():
    image = jax.random.uniform(jax.random.key(1), (8, 8, 8, 3), minval=-1.0)
    return {"image": image, "label": jnp.arange(8, dtype=jnp.int32)}


def fresh_state(task):
    return task.init_state(jax.jit(task.init_variables)(jax.random.key(2)))


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
    for dropout, same in ((1.0, True), (0.0, False)):
        task = make_task(class_dropout=dropout)
        losses = [
            float(task.step(fresh_state(task), b, jax.random.key(3), 0)[1]["loss"])
            for b in (batch, others)
        ]
        assert (losses[0] == losses[1]) == same


def test_the_tokenizer_stays_as_it_is(make_task, batch):
    task = make_task()
    before = jax.tree.map(np.array, task.tokenizer_variables)
    task.step(fresh_state(task), batch, jax.random.key(3), 0)
    jax.tree.map(np.testing.assert_array_equal, before, task.tokenizer_variables)
