"""The structure generator against the release, its times and its solver against formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax import granularity
from nvg_jax.generator import structure as structure_file
from nvg_jax.generator.numbers import number_features


@pytest.fixture(scope="module")
def golden(golden_generator, golden_sequences):
    """The network, its parameters, the truth, and the prediction of it at a stage."""
    (structure, _), canvases, class_id = golden_sequences
    arrays = golden_generator.arrays
    network = golden_generator.module.structure
    params = golden_generator.variables["params"]["structure"]
    noise = jnp.asarray(arrays["flow_noise"], jnp.float32)
    time = jax.nn.sigmoid(arrays["flow_u"])
    last_stage = network.sizes.last_stage
    x = granularity.structure_embedding(structure, last_stage) - 1
    velocity = jax.jit(network.apply)

    def predict(stage, structure=structure):
        end = jnp.where(jnp.arange(last_stage) < stage, x, noise)  # Known channels have no noise.
        t = time[:, stage, None, None]
        return end - velocity(
            {"params": params},
            t * end + (1 - t) * x,
            canvases[:, stage + 1],
            structure,
            jnp.full(2, stage),
            time[:, stage],
            class_id,
        )

    return network, params, noise, time, predict


def test_predicted_structure_is_the_reference_one(golden_generator, golden):
    network, *_, predict = golden
    last = network.sizes.last_stage - 2
    for row, stage in enumerate((0, last // 2, last)):
        expected = golden_generator.arrays["train.structure_pred"][:, row]
        np.testing.assert_allclose(predict(stage), expected, atol=1e-4 * np.abs(expected).max())


def test_losses_are_the_reference_ones(golden_generator, golden, golden_sequences):
    network, params, noise, time, _ = golden
    values = jax.jit(network.loss)(params, *golden_sequences, None, None, noise, time)
    expected = [  # By the map that a stage makes.
        golden_generator.arrays[f"train.loss.structure_{stage + 1}"] for stage in range(len(values))
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_images_that_share_the_stages_have_the_same_loss_in_the_mean(golden, golden_sequences):
    network, params, noise, time, _ = golden
    given = (*golden_sequences, None, None, noise, time)
    both_ways = (given, jax.tree.map(lambda x: x[::-1], given))
    loss = jax.jit(network.loss, static_argnames="stage_stride")
    halves = [loss(params, *arrays, stage_stride=2) for arrays in both_ways]
    np.testing.assert_allclose(sum(halves) / 2, loss(params, *given), rtol=1e-5)
    assert np.any(halves[0] != halves[1])


def test_the_loss_draws_with_the_images_keys(golden, golden_sequences):
    network, params, _, _, _ = golden
    keys = jax.random.split(jax.random.key(0), 2)
    noise, time = network.noise(keys), network.times(keys)
    drawn = jax.jit(network.loss)(params, *golden_sequences, keys)
    given = jax.jit(network.loss)(params, *golden_sequences, None, None, noise, time)
    np.testing.assert_allclose(drawn, given, rtol=1e-5)
    np.testing.assert_array_equal(network.noise(keys[1:]), noise[1:])
    assert 0 < time.min() and time.max() < 1


def test_the_solver_holds_kept_positions_on_their_way(golden):
    """Where all follow the first position, they move as it is held, from its noise to its bits."""
    network = golden[0]
    last_stage, length = network.sizes.last_stage, network.sizes.num_positions
    noise = jax.random.normal(jax.random.key(0), (1, length, last_stage))

    def first(state, time, next_time):
        return jnp.broadcast_to(state[:, :1], state.shape)

    bits = np.array([1] * (last_stage - 1) + [-1])
    held = jnp.zeros(noise.shape).at[0, 0].set(bits)
    found = network.solve(first, jnp.zeros((1, length), int), jnp.int32(0), noise, 5, held)
    times = structure_file.flow_times(5, length)
    way = sum(
        (after - t) * (t * noise[0, 0] + (1 - t) * bits)
        for t, after in zip(times[:-1], times[1:], strict=True)
    )
    np.testing.assert_allclose(found[0, 0], bits)
    np.testing.assert_allclose(found[0, 1:], noise[0, 1:] + way, atol=1e-5)


def test_what_is_not_decided_yet_is_not_seen(golden, golden_sequences):
    network, *_, predict = golden
    lowest = 2 ** (network.sizes.last_stage - 3)
    undecided = golden_sequences.sequence.structure ^ (lowest - 1)
    np.testing.assert_array_equal(predict(3, undecided), predict(3))
    assert jnp.abs(predict(3, undecided ^ lowest) - predict(3)).max() > 1e-3


def test_one_step_without_guidance_is_the_flows_own_prediction(golden, golden_sequences):
    network, params, noise, _, _ = golden
    (structure, _), canvases, class_id = golden_sequences
    scores = jax.jit(network.scores, static_argnames="num_steps")(
        params,
        canvases[:, 3],
        structure,
        jnp.int32(2),
        class_id,
        noise,
        jnp.float32(1),
        num_steps=1,
    )
    x = granularity.structure_embedding(structure, network.sizes.last_stage) - 1
    start = jnp.where(jnp.arange(network.sizes.last_stage) < 2, x, noise)
    velocity = jax.jit(network.apply)(
        {"params": params}, start, canvases[:, 3], structure, jnp.full(2, 2), jnp.ones(2), class_id
    )
    expected = (start - velocity)[..., 2:]
    np.testing.assert_allclose(scores[..., 2:], expected, atol=1e-4)
    np.testing.assert_array_equal(scores[..., :2], start[..., :2])


def test_flow_times_are_shifted():
    times = structure_file.flow_times(4, 256)
    expected = [np.e**0.5 / (np.e**0.5 + 1 / t - 1) for t in (1.0, 0.75, 0.5, 0.25)]
    np.testing.assert_allclose(times, [*expected, 0.0])


def test_number_features_are_cosines_and_sines_from_fast_to_slow():
    features = number_features(jnp.array([0.25, 1.0]), 1000.0)
    assert features.shape == (2, 64)
    np.testing.assert_allclose(features[:, 0], np.cos([250.0, 1000.0]), atol=1e-4)
    np.testing.assert_allclose(features[:, 32], np.sin([250.0, 1000.0]), atol=1e-4)
    slowest = 1000 * 10_000 ** (-31 / 32)
    np.testing.assert_allclose(features[:, 31], np.cos([slowest / 4, slowest]), atol=1e-4)
