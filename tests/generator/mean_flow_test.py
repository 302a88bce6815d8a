"""The mean flow: what it is of a flow at first, and its loss against finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax import granularity, keys, sharding
from nvg_jax.generator.mean_flow import MAX_GUIDANCE, MeanFlow
from nvg_jax.generator.structure import StructureFlow, flow_times
from tests.generator.structures import BATCH, CLASSES, LENGTH, SPLITS, STACK, random_params


def test_it_starts_as_the_flow_that_it_is_made_of(sizes, examples):
    flow, mean_flow = StructureFlow(sizes), MeanFlow(sizes)
    params = random_params(flow)
    new = sharding.make(mean_flow.init_params, jax.random.key(3))
    names = ("start", "interval", "guidance")
    assert new.keys() - params.keys() == {
        f"{name}_embed_{layer}" for name in names for layer in ("in", "out")
    }
    (structure, _), canvases, class_id, image_keys = examples
    time = jnp.linspace(0, 1, BATCH)
    given = (flow.noise(image_keys), canvases[:, 2], structure, jnp.full(BATCH, 1), time, class_id)
    more = {"start": time, "interval": jnp.zeros(BATCH), "guidance": jnp.linspace(0, 1, BATCH)}
    expected = jax.jit(flow.apply)({"params": params}, *given)
    run = jax.jit(mean_flow.apply)
    np.testing.assert_allclose(
        run({"params": new | params}, *given, more=more), expected, atol=1e-5
    )
    trained = {"params": random_params(mean_flow) | params}
    for name in names:  # Which it heeds, once it is trained.
        other = more | {name: 1 - more[name]}
        difference = run(trained, *given, more=other) - run(trained, *given, more=more)
        assert jnp.abs(difference).max() > 0.01


def test_a_step_has_the_mean_velocity_of_its_interval_and_guidance(sizes, examples):
    network = MeanFlow(sizes)
    params = random_params(network)
    (structure, _), canvases, class_id, image_keys = examples
    noise, guidance = network.noise(image_keys), jnp.float32(2.5)
    given = (canvases[:, 2], structure, jnp.int32(1), class_id, noise, guidance)
    actual = jax.jit(network.scores, static_argnames="num_steps")(params, *given, num_steps=2)
    known = np.arange(4) < 1
    bits = np.asarray(granularity.structure_embedding(structure, 1) - 1)
    state, apply = np.where(known, bits, noise), jax.jit(network.apply)
    times = flow_times(2, LENGTH).astype(np.float32)
    for start, end in zip(times[:-1], times[1:], strict=True):
        of_all = lambda number: jnp.full(BATCH, number, jnp.float32)  # noqa: E731
        more = {"start": of_all(start), "interval": of_all(start - end), "guidance": of_all(0.5)}
        arguments = (canvases[:, 2], structure, jnp.full(BATCH, 1), of_all(end), class_id)
        state = state - (start - end) * apply({"params": params}, state, *arguments, more=more)
        state = np.where(known, bits, state)
    np.testing.assert_allclose(actual, state, atol=1e-4)


def test_intervals_go_down_and_half_are_points(sizes):
    end, start = jnp.moveaxis(
        MeanFlow(sizes).times(jax.random.split(jax.random.key(0), 2000)), -1, 0
    )
    assert np.all((0 < end) & (end <= start) & (start < 1))
    assert abs(np.mean(end == start) - 0.5) < 0.03


@pytest.mark.parametrize("stride", [1, 2])
def test_loss_is_the_distance_from_the_identity_of_mean_velocities(sizes, examples, stride):
    """u(t) = v - (t - r) du/dt, along the guided velocity; the change by finite differences."""
    sequence, canvases, class_id, image_keys = examples
    splash = dataclasses.replace(STACK, attention="splash")  # Which has no forward derivative.
    network = MeanFlow(dataclasses.replace(sizes, structure=splash))
    params = random_params(MeanFlow(sizes), scale=0.1)
    actual = jax.jit(network.loss, static_argnames="stage_stride")(
        params, sequence, canvases, class_id, image_keys, stage_stride=stride
    )
    apply = jax.jit(MeanFlow(sizes).apply)
    noise, times = network.noise(image_keys), np.asarray(network.times(image_keys), np.float64)
    shares = np.asarray(keys.uniform(image_keys, "guidance", (SPLITS,)))
    for stage in range(SPLITS):
        images = slice(stage % stride, None, stride)
        bits = np.asarray(granularity.structure_embedding(sequence.structure, 4) - 1)[images]
        known = np.arange(4) < stage
        start = np.where(known, bits, noise[images])
        end, time = np.moveaxis(times[images, stage], -1, 0)
        classes = class_id[images]
        guidance = np.where(classes < CLASSES, 1 + (MAX_GUIDANCE - 1) * shares[images, stage], 1)

        def run(state, time, start, interval, guidance, classes, images=images, stage=stage):
            count = len(classes)
            more = {"start": start, "interval": interval}
            more["guidance"] = (guidance - 1) / (MAX_GUIDANCE - 1)
            more = {name: jnp.asarray(x, jnp.float32) for name, x in more.items()}
            return np.asarray(
                apply(
                    {"params": params},
                    jnp.asarray(state, jnp.float32),
                    canvases[images, stage + 1],
                    sequence.structure[images],
                    jnp.full(count, stage),
                    jnp.asarray(time, jnp.float32),
                    classes,
                    more=more,
                ),
                np.float64,
            )

        t, w = time[:, None, None], guidance[:, None, None]
        state, none = t * start + (1 - t) * bits, np.zeros_like(time)
        of_class, without = (
            run(state, time, time, none, none + 1, some)
            for some in (classes, jnp.full_like(classes, CLASSES))
        )
        velocity = np.where(known, 0, start - bits + (w - 1) * (of_class - without))
        h = 1e-4
        here, after, before = (
            run(state + by * velocity, end, time + by, time - end + by, guidance, classes)
            for by in (0.0, h, -h)
        )
        change = (after - before) / (2 * h)
        target = velocity - (time - end)[:, None, None] * change
        expected = np.mean((here - target) ** 2)
        np.testing.assert_allclose(actual[stage], expected, rtol=1e-3)


def test_every_parameter_gets_a_gradient(sizes, examples):
    network = MeanFlow(sizes)
    params = random_params(network)
    gradient = jax.jit(jax.grad(lambda params: network.loss(params, *examples).sum()))(params)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path
