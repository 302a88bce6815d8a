"""A classifier that really learns to tell digits apart."""

import jax
import numpy as np
import pytest

from nvg_jax import pixels
from nvg_jax.data import pipeline
from nvg_jax.evaluation.small_classifier import SmallClassifier, train


def test_learns_the_digits_and_the_same_for_the_same_seed(tiny_config):
    settings = tiny_config.evaluation.classifier
    settings.epochs = 3.0
    network = train(tiny_config.data, settings, seed=0)
    batch = next(iter(pipeline.evaluation_batches(tiny_config.data, "test", 360)))
    seen = jax.jit(network.module.apply)(network.variables, pixels.from_uint8(batch["image"]))
    assert np.mean(seen.logits.argmax(axis=1) == batch["label"]) > 0.8
    assert seen.pool.shape == (360, 64) and seen.spatial.shape == (360, 4 * 4 * 7)

    settings.epochs = 0.1
    once, again = (train(tiny_config.data, settings, seed=1) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, once.variables, again.variables)


@pytest.mark.parametrize(("image_size", "positions"), [(4, 16), (16, 16), (64, 16), (24, 9)])
def test_looks_at_images_of_any_size(image_size, positions):
    module = SmallClassifier(image_size, 5)
    shapes = jax.eval_shape(module.init_with_output, jax.random.key(0), module.example())[0]
    assert shapes.pool.shape == (1, 64) and shapes.logits.shape == (1, 5)
    assert shapes.spatial.shape == (1, positions * 7)
