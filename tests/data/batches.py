"""Taking batches from iterators, and comparing them."""

import contextlib
import itertools

import numpy as np

from nvg_jax.data import pipeline
from nvg_jax.data.stream import Order

ORDER = Order(batch_size=4, seed=0)


def take(iterator, count=None, state=None):
    """The first batches of an iterator, or all, from the start or from a state; closes it."""
    with contextlib.closing(iterator):
        if state is not None:
            iterator.set_state(state)
        return list(itertools.islice(iterator, count))


def train_batches(config, count, state=None, **changes):
    return take(pipeline.train_iterator(config, ORDER._replace(**changes)), count, state)


def crop_batches(config, starts, **changes):
    order = ORDER._replace(**changes)
    return take(pipeline.crop_batches(config, config.train_split, starts, order))


def assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def joined(batches, name):
    return np.concatenate([batch[name] for batch in batches])
