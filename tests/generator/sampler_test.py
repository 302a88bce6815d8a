"""Sampling against the release, schedules against their formulas, truncation against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nvg_jax import granularity, sharding
from nvg_jax.generator import sampler as sampling
from nvg_jax.generator.model import Generator
from nvg_jax.granularity import GranularitySequence
from nvg_jax.tokenizer.model import Tokenizer
from tests.torch_topk import torch_topk

GREEDY = sampling.Settings(temperature=0.0, top_p=(1.0, 1.0))


def _split_as_torch(scores, labels, num_clusters, gumbel=None):
    """`granularity.balanced_split` with the release's choice among positions of equal value."""
    value = jnp.clip(scores, -1.0, 1.0)

    def split(value, labels, num_clusters):
        value, labels = np.asarray(value), np.asarray(labels)
        children = 2 * labels
        for b, row in enumerate(labels):
            for cluster in range(int(num_clusters)):
                members = np.flatnonzero(row == cluster)
                upper = torch_topk(value[b, members], len(members) // 2)
                children[b, members[upper]] += 1
        return children

    shape = jax.ShapeDtypeStruct(labels.shape, labels.dtype)
    return jax.pure_callback(split, shape, value, labels, num_clusters)


def test_reproduces_the_release(golden_generator, golden_generator_tokenizer, monkeypatch):
    monkeypatch.setattr(granularity, "balanced_split", _split_as_torch)
    tokenizer, tokenizer_variables, _, arrays = golden_generator_tokenizer
    sequence = sampling.sample(
        tokenizer,
        golden_generator.module,
        dataclasses.replace(GREEDY, flow_steps=int(arrays["sample.flow_steps"])),
        tokenizer_variables,
        golden_generator.variables,
        jnp.asarray(arrays["class_label"], jnp.int32),
        jax.random.split(jax.random.key(0), 2),
        jnp.asarray(arrays["sample.noise"], jnp.float32),
    )
    labels = [granularity.labels_at(sequence.structure, k) for k in range(1, 9)]
    np.testing.assert_array_equal(np.stack(labels, 1), arrays["sample.labels"])
    for stage in range(9):
        painted = np.take_along_axis(
            np.asarray(granularity.stage_tokens(sequence.tokens, stage)),
            np.asarray(granularity.labels_at(sequence.structure, stage)),
            axis=1,
        )
        np.testing.assert_array_equal(painted, arrays["sample.tokens"][:, stage])
    canvases = tokenizer.apply(tokenizer_variables, sequence, method="canvases")
    np.testing.assert_allclose(canvases[:, -1], arrays["sample.final_canvas"], rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def small():
    """A random generator and its tokenizer on 4 x 4 positions."""
    tokenizer = Tokenizer(
        image_size=8,
        width=32,
        multipliers=(1, 1),
        num_blocks=1,
        latent_channels=4,
        vocab_size=16,
    )
    generator = Generator(
        depth=1,
        content_width=32,
        content_heads=1,
        structure_width=32,
        structure_heads=1,
        grid=(4, 4),
        latent_channels=4,
        vocab_size=16,
        num_classes=3,
    )

    def init(module, seed):
        variables = jax.jit(module.init)(jax.random.key(seed), module.example())
        return sharding.unnamed(variables)

    tokenizer_variables, generator_variables = init(tokenizer, 0), init(generator, 1)

    def sample(class_id, keys, flow_steps=3, given=None, **changes) -> GranularitySequence:
        return sampling.sample(
            tokenizer,
            generator,
            sampling.Settings(flow_steps=flow_steps, **changes),
            tokenizer_variables,
            generator_variables,
            jnp.asarray(class_id, jnp.int32),
            keys,
            given=given,
        )

    return tokenizer, tokenizer_variables, sample


@pytest.mark.parametrize("gumbel_split", [False, True])
def test_samples_are_valid_sequences(small, gumbel_split):
    tokenizer, variables, sample = small
    keys = jax.random.split(jax.random.key(2), 6)
    sequence = sample([0, 1, 2, 0, 1, 2], keys, gumbel_split=gumbel_split, top_k=5)
    np.testing.assert_array_equal(np.sort(sequence.structure), np.tile(np.arange(16), (6, 1)))
    assert sequence.tokens.shape == (6, 31)
    assert (np.asarray(sequence.tokens) >= 0).all() and (np.asarray(sequence.tokens) < 16).all()
    assert len(np.unique(sequence.tokens, axis=0)) == 6
    images = sampling.decode(tokenizer, variables, sequence)
    stages = sampling.decode_stages(tokenizer, variables, sequence)
    assert images.shape == (6, 8, 8, 3) and stages.shape == (6, 5, 8, 8, 3)
    np.testing.assert_allclose(stages[:, -1], images, atol=1e-5)


def test_a_sample_depends_on_its_class_and_key_alone(small):
    sample = small[2]
    keys = jax.random.split(jax.random.key(3), 4)
    together = sample([0, 1, 2, 1], keys)
    alone = sample([2, 1], keys[2:])
    np.testing.assert_array_equal(together.structure[2:], alone.structure)
    np.testing.assert_array_equal(together.tokens[2:], alone.tokens)


def test_gumbel_split_draws_other_structures(small):
    sample = small[2]
    keys = jax.random.split(jax.random.key(4), 4)
    drawn = sample([0, 1, 2, 1], keys, gumbel_split=True)
    top = sample([0, 1, 2, 1], keys)
    assert (np.asarray(drawn.structure) != np.asarray(top.structure)).any()


def _random_sequence(seed, batch):
    rng = np.random.default_rng(seed)
    structure = np.stack([rng.permutation(16) for _ in range(batch)]).astype(np.int32)
    tokens = rng.integers(0, 16, (batch, 31)).astype(np.int32)
    return GranularitySequence(jnp.asarray(structure), jnp.asarray(tokens))


def test_given_stages_come_out_as_given_and_the_rest_varies(small):
    sample = small[2]
    keys = jax.random.split(jax.random.key(6), 4)
    classes = [0, 1, 2, 1]
    reference = _random_sequence(0, 4)
    free = sample(classes, keys)
    for structure_stages in range(6):
        for content_stages in {0, structure_stages // 2, structure_stages}:
            given = sampling.Given(reference, structure_stages, content_stages)
            found = sample(classes, keys, given=given)
            np.testing.assert_array_equal(np.sort(found.structure), np.tile(np.arange(16), (4, 1)))
            for stage in range(5):
                same = {
                    "structure": granularity.labels_at(found.structure, stage)
                    == granularity.labels_at(reference.structure, stage),
                    "content": granularity.stage_tokens(found.tokens, stage)
                    == granularity.stage_tokens(reference.tokens, stage),
                }
                assert same["structure"].all() == (stage < max(structure_stages, 1))
                assert same["content"].all() == (stage < content_stages)
            if structure_stages < 2 and not content_stages:
                np.testing.assert_array_equal(found.structure, free.structure)
                np.testing.assert_array_equal(found.tokens, free.tokens)


def test_top_k_one_is_greedy(small):
    sample = small[2]
    keys = jax.random.split(jax.random.key(5), 3)
    greedy = sample([0, 1, 2], keys, temperature=0.0)
    one = sample([0, 1, 2], keys, top_k=1)
    np.testing.assert_array_equal(greedy.tokens, one.tokens)


def test_top_p_schedule_falls_from_first_to_second_value():
    schedule = sampling.top_p_schedule((1.0, 0.5), 8)
    a = [8 ** (i / 8) for i in range(9)]
    np.testing.assert_allclose(schedule, [1 - 0.5 * (a_i - 1) / 7 for a_i in a])


def test_flow_times_are_shifted():
    times = sampling.flow_times(4, 256)
    expected = [np.e**0.5 / (np.e**0.5 + 1 / t - 1) for t in (1.0, 0.75, 0.5, 0.25)]
    np.testing.assert_allclose(times, [*expected, 0.0])


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float32, (1, 1, 12), elements=st.floats(-8, 8, width=16), unique=True),
    st.integers(0, 12),
    st.floats(0.05, 1.0),
)
def test_truncation_keeps_the_smallest_sufficient_set(logits, top_k, top_p):
    truncated = sampling.truncate(jnp.asarray(logits), top_k, jnp.float32(top_p))
    kept = np.isfinite(np.asarray(truncated))
    order = np.argsort(-logits[0, 0])
    allowed = order[: top_k or 12]
    weights = np.exp(logits[0, 0, allowed].astype(np.float64))
    mass_before = np.cumsum(weights / weights.sum()) - weights / weights.sum()
    clear = np.abs(mass_before - np.float32(top_p)) > 1e-5  # Not decided by rounding.
    expected = mass_before < np.float32(top_p)
    np.testing.assert_array_equal(kept[0, 0, allowed][clear], expected[clear])
    assert kept.sum() >= 1 and not kept[0, 0, order[top_k or 12 :]].any()
