"""Taking batches from iterators, and comparing them."""

import contextlib
import itertools

import numpy as np


def take(iterator, count, state=None):
    """The first batches of an iterator, from the start or from a state; closes it."""
    with contextlib.closing(iterator):
        if state is not None:
            iterator.set_state(state)
        return list(itertools.islice(iterator, count))


def assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)
