"""What the tests of structure generators have in common; its fixtures are in `conftest.py`."""

import jax
import jax.numpy as jnp
import numpy as np

from nvg_jax import sharding
from nvg_jax.generator.sizes import StackSizes

BATCH, LENGTH, SPLITS, CLASSES = 6, 16, 3, 5
STACK = StackSizes(depth=2, width=32, num_heads=1)


def random_params(network, scale=0.3):
    """Random parameters, those that start at zero included."""
    shapes = sharding.unnamed(jax.eval_shape(network.init_params, jax.random.key(0)))
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype), shapes
    )
