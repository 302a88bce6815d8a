"""What the tests of structure generators have in common; its fixtures are in `conftest.py`."""

import jax

from nvg_jax import sharding
from nvg_jax.generator.sizes import StackSizes

BATCH, LENGTH, SPLITS, CLASSES = 6, 16, 3, 5
STACK = StackSizes(depth=2, width=32, num_heads=1)


def random_params(network, scale=0.3):
    """Random parameters, those that start at zero included."""
    params = sharding.unnamed(network.init_params(jax.random.key(0)))
    leaves, tree = jax.tree.flatten(params)
    drawn = [
        x + scale * jax.random.normal(key, x.shape)
        for x, key in zip(leaves, jax.random.split(jax.random.key(2), len(leaves)), strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)
