"""Metrics of generated images against closed forms, plain NumPy, and torch-fidelity's record."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
from scipy.stats import ortho_group

from nvg_jax.errors import UserError
from nvg_jax.evaluation import distribution
from nvg_jax.evaluation.metrics import precision_recall as manifolds
from nvg_jax.evaluation.metrics.inception_score import InceptionScore
from nvg_jax.evaluation.metrics.precision_recall import precision_recall
from tests.evaluation import record_torch_fidelity

seeds = st.integers(0, 2**32 - 1)
RECORD = json.loads(record_torch_fidelity.RECORD.read_text())


@pytest.fixture(scope="module")
def recorded_features():
    return record_torch_fidelity.make_features(**RECORD["parameters"])


def inception_score(logits, split_size=5000, num_parts=3):
    """Of logits that come in parts."""
    metric = InceptionScore(ConfigDict(), len(logits))
    metric.split_size = split_size
    for part in np.array_split(logits, num_parts):
        metric.update(part)
    return metric.scores()


def test_frechet_distance_agrees_with_torch_fidelity(recorded_features):
    real, samples, _ = recorded_features
    actual = distribution.frechet_distance(
        distribution.statistics(real), distribution.statistics(samples)
    )
    expected = RECORD["frechet_distance"]["frechet_inception_distance"]
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


@pytest.mark.parametrize("recorded", RECORD["inception_score"], ids=lambda r: f"{r['splits']}")
def test_inception_score_agrees_with_torch_fidelity(recorded_features, recorded):
    logits = recorded_features[2]
    actual = inception_score(logits, len(logits) // recorded["splits"])
    expected = (recorded["inception_score_mean"], recorded["inception_score_std"])
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


@pytest.mark.parametrize("recorded", RECORD["precision_recall"], ids=lambda r: f"{r['neighbours']}")
def test_precision_and_recall_agree_with_torch_fidelity(recorded_features, recorded):
    real, samples, _ = recorded_features
    actual = precision_recall(real, samples, recorded["neighbours"])
    expected = (recorded["precision"], recorded["recall"])
    assert 0 < min(expected) and max(expected) < 1
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


def random_statistics(rng, size, rank=None):
    factor = rng.normal(size=(size, rank or size))
    return distribution.Statistics(rng.normal(size=size), factor @ factor.T)


@given(seeds, st.sampled_from([2, 999, 1000, 1001, 2500]), st.sampled_from([np.float32, float]))
def test_statistics_equal_numpy_across_block_borders(seed, count, dtype):
    features = np.random.default_rng(seed).normal(5, 2, (count, 3)).astype(dtype)
    mean, covariance = distribution.statistics(features)
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(mean, features.astype(float).mean(axis=0), rtol=1e-12)
    expected = np.cov(features.astype(float), rowvar=False)
    np.testing.assert_allclose(covariance, expected, rtol=1e-9, atol=1e-12)


@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_distance_is_symmetric_and_does_not_depend_on_the_axes(seed, rank_a, rank_b):
    rng = np.random.default_rng(seed)
    a, b = (random_statistics(rng, 6, rank) for rank in (rank_a, rank_b))
    rotation = ortho_group.rvs(6, random_state=rng)
    turned = [
        distribution.Statistics(rotation @ mean, rotation @ covariance @ rotation.T)
        for mean, covariance in (a, b)
    ]
    actual = distribution.frechet_distance(a, b)
    np.testing.assert_allclose(distribution.frechet_distance(b, a), actual)
    np.testing.assert_allclose(distribution.frechet_distance(*turned), actual)


def test_fewer_images_than_features_are_compared_precisely():
    features = np.random.default_rng(0).normal(size=(20, 100)).astype(np.float32)
    a, b = (distribution.statistics(x) for x in (features, features + np.float32(0.01)))
    assert distribution.frechet_distance(a, a) < 1e-10
    np.testing.assert_allclose(
        distribution.frechet_distance(a, b), np.sum((a.mean - b.mean) ** 2), rtol=1e-8
    )


@pytest.mark.parametrize("count", [0, 1])
def test_statistics_need_two_images(count):
    with pytest.raises(UserError, match=f"statistics of {count} images .* use two or more"):
        distribution.statistics(np.zeros((count, 3)))


def test_statistics_of_different_networks_are_refused():
    rng = np.random.default_rng(0)
    a, b = random_statistics(rng, 3), random_statistics(rng, 4)
    with pytest.raises(UserError, match="3 features .* 4: make both with the same network"):
        distribution.frechet_distance(a, b)


@pytest.mark.parametrize("scale", [50, 1e4])
def test_score_of_sure_and_evenly_spread_classes_is_their_number(scale):
    logits = scale * np.tile(np.eye(7), (3, 1)).astype(np.float32)
    np.testing.assert_allclose(inception_score(logits), (7, 0), atol=1e-12)


def test_score_of_classes_that_never_occur_is_finite():
    logits = np.array([[0, 0, -1e4], [0, 3, -1e4]], np.float32)
    expected = inception_score(logits[:, :2])
    np.testing.assert_allclose(inception_score(logits), expected)


def test_score_is_the_mean_over_splits_with_a_smaller_last_one():
    logits = np.random.default_rng(0).normal(size=(10, 5))
    parts = [inception_score(logits[i : i + 4])[0] for i in (0, 4, 8)]
    actual = inception_score(logits, 4)
    np.testing.assert_allclose(actual, (np.mean(parts), np.std(parts)))
    assert actual[1] > 0


def precision_recall_reference(real, samples, neighbours):
    def distances(a, b):
        return np.sqrt(((a[:, None].astype(float) - b) ** 2).sum(axis=-1))

    def share_inside(images, members):
        radii = np.sort(distances(members, members), axis=1)[:, neighbours]  # 0 is the member
        return np.mean((distances(images, members) <= radii).any(axis=1))

    return share_inside(samples, real), share_inside(real, samples)


@given(seeds, st.sampled_from([(4, 9), (7, 7), (8, 20), (15, 22)]), st.integers(1, 3))
def test_precision_and_recall_equal_brute_force_across_block_borders(seed, counts, neighbours):
    rng = np.random.default_rng(seed)
    real = rng.normal(size=(counts[0], 2)).astype(np.float32)
    samples = rng.normal(0.5, 0.7, (counts[1], 2)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifolds, "_BLOCK", 7)
        actual = precision_recall(real, samples, neighbours)
    np.testing.assert_allclose(actual, precision_recall_reference(real, samples, neighbours))


@given(seeds, st.integers(4, 30))
def test_the_same_images_are_all_inside(seed, count):
    features = np.random.default_rng(seed).normal(1000, 1, (count, 50)).astype(np.float32)
    order = np.random.default_rng(seed).permutation(count)
    assert precision_recall(features, features[order]) == (1, 1)


def test_copies_of_one_image_are_inside_a_manifold_without_extent():
    rng = np.random.default_rng(0)
    image = rng.normal(100, 1, (1, 2048)).astype(np.float32)
    real, samples = np.repeat(image, 9, axis=0), np.repeat(image, 5, axis=0)
    assert precision_recall(real, samples) == (1, 1)
    assert precision_recall(real, samples * np.float32(1.0001)) == (0, 0)


def test_precision_counts_samples_and_recall_counts_real_images():
    real = np.array([[0], [1], [2], [100], [101], [102]], float)
    samples = np.array([[0.5], [1.5], [0.7], [1.2]])
    precision, recall = precision_recall(real, samples, 2)
    assert precision == 1
    assert recall == 0.5


@pytest.mark.parametrize(
    ("num_real", "num_samples", "message"),
    [
        (3, 9, "3 neighbours need at least 4 real images: there are 3"),
        (9, 2, "3 neighbours need at least 4 samples: there are 2"),
        (9, 0, "3 neighbours need at least 4 samples: there are 0"),
    ],
)
def test_precision_and_recall_need_enough_neighbours(num_real, num_samples, message):
    with pytest.raises(UserError, match=message):
        precision_recall(np.zeros((num_real, 2)), np.zeros((num_samples, 2)))


@given(st.integers(0, 2**32 - 1))
def test_the_parts_in_which_features_come_make_no_difference(seed):
    rng = np.random.default_rng(seed)
    features = (rng.standard_normal((2500, 3)) * [1, 10, 0.1] + [0, 1000, -5]).astype(np.float32)
    accumulator = distribution.Accumulator()
    cuts = np.sort(rng.integers(0, 2501, 6))
    for part in np.split(features, cuts):
        accumulator.add(part)
    found, whole = accumulator.statistics(), distribution.statistics(features)
    np.testing.assert_array_equal(found.mean, whole.mean)
    np.testing.assert_array_equal(found.covariance, whole.covariance)
    exact = features.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.covariance, np.cov(exact, rowvar=False), rtol=1e-9, atol=1e-12)
