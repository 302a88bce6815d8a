import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax.generator.sizes import Sizes
from nvg_jax.granularity import GranularitySequence
from tests.generator.structures import BATCH, CLASSES, LENGTH, STACK


@pytest.fixture(scope="session")
def sizes():
    return Sizes(STACK, STACK, (4, 4), latent_channels=3, vocab_size=7, num_classes=CLASSES)


@pytest.fixture(scope="session")
def examples():
    """Sequences, canvases, classes (the last is none) and a key of each image."""
    random = np.random.default_rng(0)
    structure = random.permuted(np.tile(np.arange(LENGTH), (BATCH, 1)), axis=1)
    tokens = np.zeros((BATCH, 2 * LENGTH - 1))
    sequence = GranularitySequence(*(jnp.asarray(x, jnp.int32) for x in (structure, tokens)))
    canvases = jnp.asarray(random.standard_normal((BATCH, 6, LENGTH, 3)), jnp.float32)
    return (
        sequence,
        canvases,
        jnp.arange(BATCH) % (CLASSES + 1),
        jax.random.split(jax.random.key(1), BATCH),
    )
