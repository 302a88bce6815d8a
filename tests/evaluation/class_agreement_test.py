"""The judge on scikit-learn's digits, and diversity against its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from nvg_jax.errors import UserError
from nvg_jax.evaluation import judge as judge_file
from nvg_jax.evaluation.judge import class_agreement, fit
from nvg_jax.evaluation.metrics.diversity import diversity

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    grey = np.round(images.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    return np.repeat(grey, 3, axis=-1), labels


@pytest.fixture(scope="module")
def judge(digits):
    images, labels = digits
    return fit(images[:1000], labels[:1000])


def random_images(rng, count, size=4):
    return rng.integers(0, 256, (count, size, size, 3), np.uint8)


def test_unseen_digits_are_recognised(judge, digits):
    images, labels = digits
    assert class_agreement(judge, images[1000:], labels[1000:]) > 0.94


def test_a_large_set_is_learned_by_a_part(digits, monkeypatch):
    monkeypatch.setattr(judge_file, "MAX_IMAGES", 500)
    images, labels = (x[np.argsort(digits[1], kind="stable")] for x in digits)
    judge = fit(images, labels)  # All zeros come first, but of all classes there are some.
    assert judge.shape_fit_[0] == 500 and class_agreement(judge, images, labels) > 0.94


def test_agreement_is_the_share_of_matching_classes():
    rng = np.random.default_rng(0)
    labels = np.array([3, 7] * 10)
    images = random_images(rng, 20) // 8 + np.where(labels == 7, 200, 0)[:, None, None, None]
    images = images.astype(np.uint8)
    judge = fit(images, labels)
    requested = np.where(np.arange(20) < 5, 10 - labels, labels)
    assert class_agreement(judge, images, labels) == 1.0
    assert class_agreement(judge, images, requested) == 0.75


def test_agreement_looks_at_grey_values_only(judge, digits):
    images = digits[0][1000:1100].astype(int)
    shift = np.minimum(images, 255 - images) // 2
    coloured = images + shift * np.array([1, 0, -1])
    labels = judge.predict((images.mean(axis=-1) / 255).reshape(100, -1))
    assert np.any(shift)
    assert class_agreement(judge, coloured.astype(np.uint8), labels) == 1.0


def test_agreement_refuses_another_resolution(judge):
    samples = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(UserError, match="16 x 16 .* 64 pixels: use the same resolution"):
        class_agreement(judge, samples, np.array([0, 1]))


def test_diversity_equals_a_loop_over_pairs():
    rng = np.random.default_rng(0)
    samples, real = random_images(rng, 7), random_images(rng, 9) // 2
    labels, real_labels = np.array([0, 2, 0, 2, 2, 0, 0]), np.array([0, 1, 2, 0, 1, 2, 0, 2, 2])

    def distance(images):
        grey = images.astype(float).mean(axis=-1)
        pairs = [(i, j) for i in range(len(grey)) for j in range(i)]
        return np.mean([np.sqrt(((grey[i] - grey[j]) ** 2).sum()) for i, j in pairs])

    expected = np.mean(
        [distance(samples[labels == c]) / distance(real[real_labels == c]) for c in (0, 2)]
    )
    actual = diversity(samples, labels, real, real_labels)
    np.testing.assert_allclose(actual, expected)


@given(seeds)
def test_diversity_of_the_real_images_is_one_in_any_order(seed):
    rng = np.random.default_rng(seed)
    real, labels = random_images(rng, 8), np.array([0, 0, 0, 1, 1, 2, 2, 2])
    order = rng.permutation(8)
    actual = diversity(real[order], labels[order], real, labels)
    np.testing.assert_allclose(actual, 1)


@given(seeds, st.integers(1, 5))
def test_diversity_scales_with_contrast(seed, factor):
    rng = np.random.default_rng(seed)
    samples = random_images(rng, 6) // 5
    labels = np.array([0, 0, 1, 1, 1, 0])
    actual = diversity(samples * np.uint8(factor), labels, samples, labels)
    np.testing.assert_allclose(actual, factor)


@pytest.mark.parametrize(
    ("labels", "real_labels", "message"),
    [
        ([0, 0, 1], [0, 0, 1, 1], "class 1 has 1 samples"),
        ([0, 0, 0], [1, 1, 1, 0], "class 0 has 1 real images"),
        ([0, 0, 0], [1, 1, 1, 1], "class 0 has 0 real images"),
    ],
)
def test_diversity_needs_pairs(labels, real_labels, message):
    rng = np.random.default_rng(0)
    samples, real = random_images(rng, 3), random_images(rng, 4)
    with pytest.raises(UserError, match=message):
        diversity(samples, np.array(labels), real, np.array(real_labels))


def test_diversity_refuses_another_resolution():
    rng = np.random.default_rng(0)
    labels = np.zeros(2, int)
    with pytest.raises(UserError, match="4 x 4 .* 8 x 8: use the same resolution"):
        diversity(random_images(rng, 2), labels, random_images(rng, 2, 8), labels)
