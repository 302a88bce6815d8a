import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvg_jax import granularity
from nvg_jax.errors import UserError

# One number of positions for most laws, so that each shape is compiled once.
LAST_STAGE = 4
LENGTH = 2**LAST_STAGE
stages = st.integers(0, LAST_STAGE)
seeds = st.integers(0, 2**32 - 1)


@functools.partial(jax.jit, static_argnums=1)
def count(tokens, vocab_size):
    return granularity.token_counts(granularity.by_stage(tokens), vocab_size)


def _structure(seed, batch=2, length=LENGTH):
    rng = np.random.default_rng(seed)
    return jnp.asarray(np.stack([rng.permutation(length) for _ in range(batch)]), jnp.int32)


def _values(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _sizes(labels, num_clusters):
    return np.stack([np.bincount(row, minlength=num_clusters) for row in np.asarray(labels)])


@pytest.mark.parametrize("length", [2, 4, 16, 64, 256])
def test_last_stage_has_one_cluster_a_position(length):
    assert 2 ** granularity.last_stage(length) == length


@pytest.mark.parametrize("length", [-4, 0, 1, 3, 12, 100])
def test_positions_that_are_no_power_of_two_are_refused(length):
    with pytest.raises(UserError, match=f"^{length} latent positions are not a power of two"):
        granularity.last_stage(length)


@given(seeds, stages)
def test_labels_are_balanced_and_nest(seed, stage):
    structure = _structure(seed)
    labels = granularity.labels_at(structure, stage)
    assert np.all(_sizes(labels, 2**stage) == LENGTH // 2**stage)
    if stage < LAST_STAGE:
        children = granularity.labels_at(structure, stage + 1)
        np.testing.assert_array_equal(children // 2, labels)


@given(seeds, stages)
def test_structure_from_labels_keeps_the_labels_and_no_more(seed, stage):
    labels = granularity.labels_at(_structure(seed), stage)
    partial = granularity.structure_from_labels(labels, stage)
    np.testing.assert_array_equal(granularity.labels_at(partial, stage), labels)
    assert np.all(partial % 2 ** (LAST_STAGE - stage) == 0)


def test_stages_may_differ_between_images_and_be_traced():
    structure, stage = _structure(0, batch=5), jnp.arange(5)
    labels = granularity.labels_at(structure, stage)
    for function, argument in (
        (granularity.labels_at, structure),
        (granularity.structure_embedding, structure),
        (granularity.structure_from_labels, labels),
    ):
        one_by_one = jnp.stack([function(argument[k : k + 1], k)[0] for k in range(5)])
        np.testing.assert_array_equal(function(argument, stage), one_by_one)
        traced = jax.jit(function)(argument[2:3], jnp.int32(2))
        np.testing.assert_array_equal(traced[0], one_by_one[2])


@given(seeds, stages)
def test_structure_embedding_spells_the_label_in_bits(seed, stage):
    structure = _structure(seed)
    embedding = np.asarray(granularity.structure_embedding(structure, stage))
    assert embedding.shape == (2, LENGTH, LAST_STAGE)
    assert np.all(embedding[..., stage:] == 1)
    bits = embedding[..., :stage] / 2
    assert np.all((bits == 0) | (bits == 1))
    spelled = bits @ 2 ** np.arange(stage)[::-1]
    np.testing.assert_array_equal(spelled, granularity.labels_at(structure, stage))


@given(seeds, stages.filter(bool))
def test_child_inherits_the_channels_of_its_parent(seed, stage):
    structure = _structure(seed)
    child = granularity.structure_embedding(structure, stage)
    parent = granularity.structure_embedding(structure, stage - 1)
    np.testing.assert_array_equal(child[..., : stage - 1], parent[..., : stage - 1])


@given(seeds, stages)
def test_only_the_top_bits_of_a_stage_count(seed, stage):
    structure = _structure(seed)
    other = structure ^ (2 ** (LAST_STAGE - stage) - 1)
    for function in (granularity.labels_at, granularity.structure_embedding):
        np.testing.assert_array_equal(function(other, stage), function(structure, stage))


def test_heap_holds_the_stages_one_after_the_other():
    tokens = jnp.arange(2 * LENGTH - 1)[None]
    found = [granularity.stage_tokens(tokens, stage) for stage in range(LAST_STAGE + 1)]
    assert [part.shape[1] for part in found] == [1, 2, 4, 8, 16]
    np.testing.assert_array_equal(jnp.concatenate(found, axis=1), tokens)
    assert found[3][0, 5] == 2**3 - 1 + 5


@given(seeds, stages)
def test_cluster_mean_and_paint_agree_with_numpy(seed, stage):
    structure, values = _structure(seed), _values(seed, 2, LENGTH, 3)
    labels = granularity.labels_at(structure, stage)
    mean = np.asarray(granularity.cluster_mean(values, labels, 2**stage))
    painted = np.asarray(granularity.paint(jnp.asarray(mean), labels))
    for image in range(2):
        for cluster in range(2**stage):
            inside = np.asarray(labels[image]) == cluster
            expected = np.asarray(values)[image, inside].mean(axis=0)
            np.testing.assert_allclose(mean[image, cluster], expected, atol=1e-5)
            np.testing.assert_array_equal(
                painted[image, inside], np.broadcast_to(mean[image, cluster], (inside.sum(), 3))
            )


@given(seeds, stages)
def test_mean_of_what_is_painted_is_what_was_painted(seed, stage):
    labels = granularity.labels_at(_structure(seed), stage)
    values = _values(seed, 2, 2**stage, 3)
    painted = granularity.paint(values, labels)
    np.testing.assert_allclose(
        granularity.cluster_mean(painted, labels, 2**stage), values, atol=1e-5
    )


def test_cluster_mean_is_float32_and_zero_where_nobody_is():
    values = jnp.full((1, 4, 2), 3.0, jnp.bfloat16)
    mean = granularity.cluster_mean(values, jnp.zeros((1, 4), jnp.int32), 2)
    assert mean.dtype == jnp.float32
    np.testing.assert_array_equal(mean[0], [[3, 3], [0, 0]])


@given(seeds, st.integers(0, LAST_STAGE - 1), st.booleans())
def test_split_keeps_balance_and_nesting_whatever_the_scores(seed, stage, drawn):
    labels = granularity.labels_at(_structure(seed), stage)
    # Coarse scores beyond the bounds: many are equal, many fall on the bounds.
    scores = jnp.round(2 * _values(seed, 2, LENGTH))
    gumbel = jax.random.gumbel(jax.random.key(seed), (2, LENGTH)) if drawn else None
    children = granularity.balanced_split(scores, labels, 2**stage, gumbel)
    np.testing.assert_array_equal(children // 2, labels)
    assert np.all(_sizes(children, 2 ** (stage + 1)) == LENGTH // 2 ** (stage + 1))


@given(seeds, st.integers(0, LENGTH), st.booleans())
def test_positions_that_keep_their_structure_always_leave_a_balanced_split(seed, num_kept, drawn):
    structure, is_kept = _structure(seed), np.asarray(_structure(seed + 1)) < num_kept
    labels = jnp.zeros((2, LENGTH), jnp.int32)
    for stage in range(LAST_STAGE):
        expected = granularity.labels_at(structure, stage + 1)
        # Many on the bounds, whose logarithm is infinite as well.
        scores = jnp.round(2 * _values(seed + stage, 2, LENGTH))
        scores = jnp.where(is_kept, jnp.where(expected % 2, jnp.inf, -jnp.inf), scores)
        gumbel = jax.random.gumbel(jax.random.key(seed), (2, LENGTH)) if drawn else None
        children = granularity.balanced_split(scores, labels, 2**stage, gumbel)
        np.testing.assert_array_equal(children // 2, labels)
        np.testing.assert_array_equal(children[is_kept], expected[is_kept])
        assert np.all(_sizes(children, 2 ** (stage + 1)) == LENGTH // 2 ** (stage + 1))
        labels = children


@given(seeds, st.integers(0, LAST_STAGE - 1))
def test_split_puts_higher_scores_in_the_second_half(seed, stage):
    labels = granularity.labels_at(_structure(seed), stage)
    scores = jnp.clip(0.5 * _values(seed, 2, LENGTH), -1, 1)
    children = np.asarray(granularity.balanced_split(scores, labels, 2**stage))
    for image in range(2):
        for cluster in range(2**stage):
            lower = np.asarray(scores)[image, children[image] == 2 * cluster]
            upper = np.asarray(scores)[image, children[image] == 2 * cluster + 1]
            assert lower.max() <= upper.min()


def test_split_of_equal_scores_goes_by_position():
    scores, labels = jnp.array([[5.0, 1.0, 2.0, 0.0]]), jnp.zeros((1, 4), jnp.int32)
    # All above 1 count as 1.
    np.testing.assert_array_equal(granularity.balanced_split(scores, labels, 1), [[1, 1, 0, 0]])


def test_splitting_down_gives_a_whole_structure_with_a_traced_stage():
    @jax.jit
    def split(labels, scores, num_clusters):
        return granularity.balanced_split(scores, labels, num_clusters)

    labels = jnp.zeros((3, LENGTH), jnp.int32)
    for stage in range(LAST_STAGE):
        labels = split(labels, _values(stage, 3, LENGTH), jnp.int32(2**stage))
    np.testing.assert_array_equal(jnp.sort(labels, axis=1), np.tile(np.arange(LENGTH), (3, 1)))


@given(seeds)
def test_drawn_halves_follow_the_odds(seed):
    """A position with twice the weight, p = 2 to p = 1, is drawn twice as often of two."""
    scores = jnp.tile(jnp.array([1.0, 0.0]), (4096, 1))
    gumbel = jax.random.gumbel(jax.random.key(seed), scores.shape)
    children = granularity.balanced_split(scores, jnp.zeros((4096, 2), jnp.int32), 1, gumbel)
    assert abs(children[:, 0].mean() - 2 / 3) < 0.045  # Six standard deviations.


def counts_reference(tokens, vocab_size):
    num_stages = (tokens.shape[1] + 1).bit_length() - 1
    counts = np.zeros((num_stages, vocab_size), int)
    for image in tokens:
        for slot, code in enumerate(image):
            counts[(slot + 1).bit_length() - 1, code] += 1
    return counts


@given(seeds, st.sampled_from([(1, 2), (3, 5), (4, 3)]))
def test_counts_equal_a_loop_over_the_heap(seed, stage_and_batch):
    last_stage, batch = stage_and_batch
    shape = (batch, 2 ** (last_stage + 1) - 1)
    tokens = np.random.default_rng(seed).integers(0, 7, shape, np.int32)
    np.testing.assert_array_equal(count(tokens, 7), counts_reference(tokens, 7))


def test_counts_refuse_what_is_no_heap():
    with pytest.raises(UserError, match="power of two"):
        granularity.by_stage(jnp.zeros((1, 11), jnp.int32))


def test_usage_by_stage_and_overall():
    counts = np.array([[3, 0, 0, 0], [1, 1, 0, 0], [0, 2, 0, 5]])
    by_stage, overall = granularity.codebook_usage(counts)
    np.testing.assert_allclose(by_stage, [0.25, 0.5, 0.5])
    assert overall == 0.75


@given(seeds, st.sampled_from([1, 8, 40]))
def test_usage_agrees_with_the_set_of_codes(seed, vocab_size):
    tokens = np.random.default_rng(seed).integers(0, vocab_size, (3, 15), np.int32)
    by_stage, overall = granularity.codebook_usage(np.asarray(count(tokens, vocab_size)))
    assert overall == len(np.unique(tokens)) / vocab_size
    for stage, share in enumerate(by_stage):
        codes = tokens[:, granularity.stage_slice(stage)]
        assert share == len(np.unique(codes)) / vocab_size
