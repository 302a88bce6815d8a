import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nvg_jax import granularity

STAGES = range(9)


@pytest.fixture(scope="module")
def predict(golden_generator, golden_generator_tokenizer):
    """The prediction of the final canvas from given canvases and structures, one stage an image."""
    scales = golden_generator_tokenizer.variables["stats"]["quantizer"]["canvas_scales"]
    run = jax.jit(functools.partial(golden_generator.module.apply, method="predict_canvas"))

    def predict(*args):
        return run(golden_generator.variables, *args, scales)

    return predict


@pytest.fixture(scope="module")
def outputs(predict, golden_generator, golden_sequences):
    """Predicted final canvas and token logits of every stage."""
    structure, quantized, class_id = golden_sequences
    outputs = []
    for stage in STAGES:
        canvas = quantized.canvases[:, stage]
        final_canvas = predict(canvas, structure, jnp.full(2, stage), class_id)
        logits = golden_generator.module.apply(
            golden_generator.variables,
            final_canvas,
            canvas,
            granularity.labels_at(structure, stage),
            2**stage,
            method="token_logits",
        )
        outputs.append((final_canvas, logits))
    return outputs


def test_predicted_final_canvas_is_the_reference_one(golden_generator, outputs):
    for row, stage in enumerate((0, 4, 8)):
        expected = golden_generator.arrays["train.final_hat"][:, row]
        np.testing.assert_allclose(outputs[stage][0], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("stage", [0, 1, 4, 8])
def test_logits_are_the_reference_ones(golden_generator, outputs, stage):
    expected = golden_generator.arrays[f"train.logits.{stage}"]
    np.testing.assert_allclose(outputs[stage][1], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("stage", STAGES)
def test_losses_are_the_reference_ones(golden_generator, golden_sequences, outputs, stage):
    quantized, (final_canvas, logits) = golden_sequences.quantized, outputs[stage]
    tokens = granularity.stage_tokens(quantized.tokens, stage)
    content = optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()
    final = jnp.mean((final_canvas - quantized.canvases[:, -1]) ** 2)
    arrays = golden_generator.arrays
    np.testing.assert_allclose(content, arrays[f"train.loss.content_{stage}"], rtol=1e-4)
    np.testing.assert_allclose(final, arrays[f"train.loss.final_{stage}"], rtol=1e-4)


def test_images_of_one_batch_may_be_at_different_stages(predict, golden_sequences, outputs):
    structure, quantized, class_id = golden_sequences
    stage = jnp.array([0, 4])
    canvas = quantized.canvases[jnp.arange(2), stage]
    mixed = predict(canvas, structure, stage, class_id)
    np.testing.assert_allclose(mixed[0], outputs[0][0][0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], outputs[4][0][1], atol=1e-5)


def test_what_is_not_decided_yet_is_not_seen(predict, golden_sequences, outputs):
    structure, quantized, class_id = golden_sequences
    undecided = structure ^ 15  # The lowest four of eight bits.
    final_canvas = predict(quantized.canvases[:, 4], undecided, jnp.full(2, 4), class_id)
    np.testing.assert_array_equal(final_canvas, outputs[4][0])
    # At stage 0 a learned canvas stands for the empty one.
    final_canvas = predict(quantized.canvases[:, 9], undecided, jnp.full(2, 0), class_id)
    np.testing.assert_array_equal(final_canvas, outputs[0][0])


def test_class_stage_and_structure_make_a_difference(predict, golden_sequences, outputs):
    structure, quantized, class_id = golden_sequences
    canvas, stage, expected = quantized.canvases[:, 4], jnp.full(2, 4), outputs[4][0]
    for other in (
        predict(canvas, structure, stage, jnp.full(2, 10)),  # "No class".
        predict(canvas, structure, stage + 1, class_id),
        predict(canvas, structure ^ 16, stage, class_id),
    ):
        assert jnp.abs(other - expected).max() > 1e-3
