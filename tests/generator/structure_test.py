import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax import granularity

STAGES = range(7)


@pytest.fixture(scope="module")
def flow(golden_generator, golden_sequences):
    """At every stage: known and noisy channels, the prediction of the structure, its truth."""
    structure, quantized, class_id = golden_sequences
    arrays = golden_generator.arrays
    noise = jnp.asarray(arrays["flow_noise"], jnp.float32)
    time = jax.nn.sigmoid(arrays["flow_u"])
    x = granularity.structure_embedding(structure, 8) - 1

    velocity = jax.jit(functools.partial(golden_generator.module.apply, method="velocity"))

    def predict(stage, structure=structure):
        end = jnp.where(jnp.arange(8) < stage, x, noise)  # Known channels are not noised.
        t = time[:, stage, None, None]
        return end - velocity(
            golden_generator.variables,
            t * end + (1 - t) * x,
            quantized.canvases[:, stage + 1],
            structure,
            jnp.full(2, stage),
            time[:, stage],
            class_id,
        )

    return x, predict


def test_predicted_structure_is_the_reference_one(golden_generator, flow):
    _, predict = flow
    for row, stage in enumerate((0, 3, 6)):
        expected = golden_generator.arrays["train.structure_pred"][:, row]
        np.testing.assert_allclose(predict(stage), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("stage", STAGES)
def test_losses_are_the_reference_ones(golden_generator, flow, stage):
    x, predict = flow
    expected = golden_generator.arrays[f"train.loss.structure_{stage + 1}"]  # By the map it makes.
    np.testing.assert_allclose(jnp.mean((predict(stage) - x) ** 2), expected, rtol=1e-4)


def test_what_is_not_decided_yet_is_not_seen(flow, golden_sequences):
    _, predict = flow
    undecided = golden_sequences.structure ^ 31  # The lowest five of eight bits.
    np.testing.assert_array_equal(predict(3, undecided), predict(3))
    assert jnp.abs(predict(3, undecided ^ 32) - predict(3)).max() > 1e-3
