"""Training states, and iterators over data."""

from typing import Any

import flax
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nvg_jax import sharding

ARCHITECTURE = "generator(width 64, 16 positions)"


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any
    ema: Any


def make_state(seed: int) -> State:
    """A state of its own for every seed, with an optax chain and a bfloat16 leaf."""
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {
        "dense": {"kernel": jax.random.normal(keys[0], (64, 48)), "bias": jnp.zeros(48)},
        "half": jax.random.normal(keys[1], (9, 7)).astype(jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    _, opt_state = optimizer.update(params, optimizer.init(params), params)
    ema = jax.tree.map(lambda x: x * 3, params)
    return State(jnp.int32(seed), params, opt_state, ema)


def first_state(task: Any, key: jax.Array, *given: Any) -> Any:
    """A task's state before the first step, where steps leave theirs: these compile once."""
    like = sharding.abstract(task.init_state, sharding.create_mesh(), key)
    return sharding.make(task.init_state, key, *given, like=like)


def make_large(step: int) -> State:
    """Two megabytes of noise, which cannot be compressed."""
    return State(jnp.int32(step), {}, {}, jax.random.normal(jax.random.key(step), (500_000,)))


def abstract(tree: Any) -> Any:
    return jax.eval_shape(lambda: tree)


ABSTRACT = abstract(make_state(0))


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert isinstance(x, jax.Array) and x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def iterator(position: int = 0) -> grain.DatasetIterator:
    dataset = grain.MapDataset.range(50).shuffle(seed=1).repeat(2).to_iter_dataset()
    data_iterator = iter(dataset.batch(4))
    for _ in range(position):
        next(data_iterator)
    return data_iterator
