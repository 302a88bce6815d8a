"""One root and named folds: no two purposes and no two seeds share random numbers."""

import itertools

import jax
import numpy as np

from nvg_jax import keys

PURPOSES = ("tokenizer", "generator", "samples", "evaluation samples", "canvas scales")


def test_purposes_and_neighbouring_seeds_share_no_numbers():
    names = list(itertools.product(range(4), PURPOSES))
    data = {tuple(jax.random.key_data(keys.named(*each)).tolist()) for each in names}
    integers = {keys.integer(*each) for each in names}
    assert len(data) == len(integers) == len(names)


def test_a_purpose_has_the_same_numbers_every_time():
    once, again = keys.named(7, "generator", "steps"), keys.named(7, "generator", "steps")
    np.testing.assert_array_equal(jax.random.key_data(once), jax.random.key_data(again))
    assert keys.integer(7, "generator") == keys.integer(7, "generator") < 2**32


def test_folding_in_turn_is_folding_at_once():
    at_once = keys.named(3, "generator", "steps")
    in_turn = keys.named(keys.named(3, "generator"), "steps")
    np.testing.assert_array_equal(jax.random.key_data(at_once), jax.random.key_data(in_turn))
