"""The content generator against the release, and what it sees and does not see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nvg_jax import granularity, sharding
from nvg_jax.generator import content
from nvg_jax.generator.sizes import Sizes, StackSizes
from nvg_jax.tokenizer.model import canvas_scales


@pytest.fixture(scope="module")
def golden(golden_generator, golden_generator_tokenizer, golden_sequences):
    """The network with its parameters, the prediction at one stage an image, and the scales."""
    network = golden_generator.module.content
    params = golden_generator.variables["params"]["content"]
    scales = canvas_scales(golden_generator_tokenizer.variables)
    run = jax.jit(network.apply)

    def predict(*args):
        return run({"params": params}, *args, scales)

    return network, params, predict, scales


@pytest.fixture(scope="module")
def outputs(golden, golden_sequences):
    """The predicted final canvas of every stage."""
    (structure, _), canvases, class_id = golden_sequences
    predict, batch = golden[2], len(class_id)
    return [
        predict(canvases[:, stage], structure, jnp.full(batch, stage), class_id)
        for stage in range(canvases.shape[1] - 1)
    ]


def test_predicted_final_canvas_is_the_reference_one(golden_generator, outputs):
    references = golden_generator.arrays["train.final_hat"]
    last_stage = len(outputs) - 1
    for row, stage in enumerate((0, last_stage // 2, last_stage)):
        expected = references[:, row]
        np.testing.assert_allclose(outputs[stage], expected, atol=1e-4 * np.abs(expected).max())


def test_logits_are_the_reference_ones(golden, golden_generator, golden_sequences, outputs):
    network, params, _, _ = golden
    (structure, _), canvases, _ = golden_sequences
    references = {
        int(name.rpartition(".")[2]): array
        for name, array in golden_generator.arrays.items()
        if name.startswith("train.logits.")
    }
    assert references
    for stage, expected in references.items():
        labels = granularity.labels_at(structure, stage)
        missing = network.missing(outputs[stage], canvases[:, stage], labels, 2**stage)
        logits = network.token_logits(params, missing)
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_losses_are_the_reference_ones(golden, golden_generator, golden_sequences):
    network, params, _, scales = golden
    by_stage = jax.jit(network.loss)(params, *golden_sequences, scales)
    assert set(by_stage) == {"final", "content"}
    for name, values in by_stage.items():
        expected = [
            golden_generator.arrays[f"train.loss.{name}_{stage}"] for stage in range(len(values))
        ]
        np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_images_that_share_the_stages_have_the_same_loss_in_the_mean(golden, golden_sequences):
    network, params, _, scales = golden
    both_ways = (golden_sequences, jax.tree.map(lambda x: x[::-1], golden_sequences))
    loss = jax.jit(network.loss, static_argnames="stage_stride")
    halves = [loss(params, *arrays, scales, stage_stride=2) for arrays in both_ways]
    for name, whole in loss(params, *golden_sequences, scales).items():
        half, other = (by_stage[name] for by_stage in halves)
        np.testing.assert_allclose((half + other) / 2, whole, rtol=1e-5)
        assert np.any(half != other)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_network_that_takes_its_guidance_is_trained_through_the_canvas_with_the_class(stride):
    """Of the guided canvas g = u + w (c - u) with u without the class, c has the losses."""
    stack = StackSizes(depth=1, width=32, num_heads=1)
    sizes = Sizes(stack, stack, (2, 2), latent_channels=3, vocab_size=7, num_classes=5)
    network = content.Content(dataclasses.replace(sizes, guided_content=True))
    params = sharding.make(network.init_params, jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size).reshape(x.shape)), params)
    structure = jnp.array([[0, 3, 1, 2], [2, 1, 0, 3]] * 2)
    sequence = granularity.GranularitySequence(structure, jnp.arange(28).reshape(4, 7) % 7)
    canvases = jax.random.normal(jax.random.key(1), (4, 4, 4, 3))
    class_id, scales = jnp.array([0, 5, 2, 4]), jnp.ones(4)  # The second has none.
    guidance = network.guidance(jax.random.split(jax.random.key(2), 4))
    assert guidance.shape == (4, 3) and 1 <= guidance.min() and guidance.max() <= 8
    by_stage = jax.jit(network.loss, static_argnames="stage_stride")(
        params, sequence, canvases, class_id, scales, stage_stride=stride, guidance=guidance
    )
    apply, token_logits = jax.jit(network.apply), jax.jit(network.token_logits)

    def run(images, stage, classes, guidance):
        count = len(classes)
        given = (canvases[images, stage], structure[images], jnp.full(count, stage))
        return apply({"params": params}, *given, classes, scales, guidance=guidance)

    for stage in range(3):
        images = slice(stage % stride, None, stride)
        classes = class_id[images]
        w = jnp.where(classes == 5, 1.0, guidance[images, stage])
        guided = run(images, stage, classes, w)
        without = run(images, stage, jnp.full_like(classes, 5), jnp.ones_like(w))
        expected = without + (guided - without) / w[:, None, None]
        error = np.mean((expected - canvases[images, -1]) ** 2)
        np.testing.assert_allclose(by_stage["final"][stage], error, rtol=1e-5)
        labels = granularity.labels_at(structure[images], stage)
        missing = network.missing(expected, canvases[images, stage], labels, 2**stage)
        log_p = jax.nn.log_softmax(token_logits(params, missing))
        tokens = granularity.stage_tokens(sequence.tokens[images], stage)
        error = -np.mean(np.take_along_axis(log_p, tokens[..., None], -1))
        np.testing.assert_allclose(by_stage["content"][stage], error, rtol=1e-5)


def test_images_of_one_batch_may_be_at_different_stages(golden, golden_sequences, outputs):
    (structure, _), canvases, class_id = golden_sequences
    stage = jnp.array([0, 4])
    mixed = golden[2](canvases[jnp.arange(2), stage], structure, stage, class_id)
    np.testing.assert_allclose(mixed[0], outputs[0][0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], outputs[4][1], atol=1e-5)


def test_what_is_not_decided_yet_is_not_seen(golden, golden_sequences, outputs):
    (structure, _), canvases, class_id = golden_sequences
    predict, last_stage = golden[2], len(outputs) - 1
    undecided = structure ^ (2 ** (last_stage - 4) - 1)  # The bits below those of stage 4.
    final_canvas = predict(canvases[:, 4], undecided, jnp.full(2, 4), class_id)
    np.testing.assert_array_equal(final_canvas, outputs[4])
    # At stage 0 a learned canvas stands for the empty one.
    final_canvas = predict(canvases[:, -1], undecided, jnp.full(2, 0), class_id)
    np.testing.assert_array_equal(final_canvas, outputs[0])


def test_class_stage_and_structure_make_a_difference(golden, golden_sequences, outputs):
    network, _, predict, _ = golden
    (structure, _), canvases, class_id = golden_sequences
    canvas, stage, last_stage = canvases[:, 4], jnp.full(2, 4), len(outputs) - 1
    for other in (
        predict(canvas, structure, stage, jnp.full(2, network.sizes.num_classes)),
        predict(canvas, structure, stage + 1, class_id),
        predict(canvas, structure ^ 2 ** (last_stage - 4), stage, class_id),
    ):
        assert jnp.abs(other - outputs[4]).max() > 1e-3


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float32, (1, 1, 12), elements=st.floats(-8, 8, width=16), unique=True),
    st.integers(0, 12),
    st.floats(0.05, 1.0),
)
def test_truncation_keeps_the_smallest_sufficient_set(logits, top_k, top_p):
    kept = np.isfinite(np.asarray(content.truncate(jnp.asarray(logits), top_k, jnp.float32(top_p))))
    order = np.argsort(-logits[0, 0])
    allowed = order[: top_k or 12]
    weights = np.exp(logits[0, 0, allowed].astype(np.float64))
    mass_before = np.cumsum(weights / weights.sum()) - weights / weights.sum()
    clear = np.abs(mass_before - np.float32(top_p)) > 1e-5  # Not decided by rounding.
    np.testing.assert_array_equal(kept[0, 0, allowed][clear], (mass_before < top_p)[clear])
    assert kept.sum() >= 1 and not kept[0, 0, order[top_k or 12 :]].any()
