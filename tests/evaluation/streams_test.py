"""Features are the same however the images are spread over batches and devices."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from nvg_jax import pixels, sharding
from nvg_jax.evaluation import streams
from nvg_jax.evaluation.small_classifier import SmallClassifier
from nvg_jax.frozen.weights import Frozen

_ON_EIGHT_DEVICES = """
import sys
import jax
import numpy as np
from nvg_jax import sharding
from ml_collections import ConfigDict
from nvg_jax.evaluation import distribution, streams
from nvg_jax.evaluation.metrics.inception_score import InceptionScore
from nvg_jax.evaluation.metrics.precision_recall import precision_recall
from nvg_jax.evaluation.small_classifier import SmallClassifier
from nvg_jax.frozen.inception import Inception
from nvg_jax.frozen.weights import Frozen

assert jax.device_count() == 8
name, count = sys.argv[1], int(sys.argv[2])
module = Inception() if name == "inception" else SmallClassifier(16, 10)
shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
rng = np.random.default_rng(0)
fill = lambda x: (0.05 * rng.standard_normal(x.shape) + (len(x.shape) == 1)).astype(np.float32)
network = Frozen(module, jax.tree.map(fill, shapes))
images = rng.integers(0, 256, (count, 16, 16, 3), np.uint8)

def measure(devices):
    mesh = sharding.create_mesh(devices=jax.devices()[:devices])
    batches = streams.of_images(images, None, mesh, 2)
    seen = streams.concatenate(streams.extract(network, batches))
    score = InceptionScore(ConfigDict(), count)
    score.update(seen.logits)
    assert len(seen.pool) == count and seen.pool.std() > 0
    half = count // 2
    a, b = (distribution.statistics(x) for x in (seen.pool[:half], seen.pool[half:]))
    return (
        distribution.frechet_distance(a, b),
        *score.scores(),
        *precision_recall(seen.pool[:half], seen.pool[half:]),
    )

alone = measure(1)
assert alone[0] > 0
print(alone)
for devices in (2, 8):
    assert measure(devices) == alone, (devices, measure(devices), alone)
"""


@pytest.mark.parametrize(
    ("network", "count"),
    [("classifier", 45), pytest.param("inception", 21, marks=pytest.mark.slow)],
)
def test_metrics_are_identical_on_one_and_on_eight_devices(network, count):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",  # What holds exactly has to hold as users compile.
        "PYTHONPATH": ":".join(sys.path),
    }
    found = subprocess.run(
        [sys.executable, "-c", _ON_EIGHT_DEVICES, network, str(count)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert found.returncode == 0, found.stderr


@pytest.fixture(scope="module")
def network():
    module = SmallClassifier(8, 3, width=16)
    return Frozen(module, jax.jit(module.init)(jax.random.key(0), module.example()))


def test_every_image_is_seen_once_and_in_order_as_it_is_stored(network):
    images = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), np.uint8)
    batches = streams.of_images(images, np.arange(11), sharding.create_mesh(), 4)
    labels, seen = [], []
    for batch in batches:
        noisy = batch["image"] + 0.9 / 255  # What a file of 8-bit pixels does not hold.
        found = streams.apply(*network, noisy), batch["label"]
        found, label = streams.gather(found, batch["mask"])
        seen.append(found)
        labels.extend(label)
    assert labels == list(range(11))
    expected = jax.jit(network.module.apply)(network.variables, pixels.from_uint8(images))
    for found, wanted in zip(streams.concatenate(seen), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
