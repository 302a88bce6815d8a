"""Beside the array of the samples, evaluating many takes no more memory than evaluating few."""

import gc
import os
import pathlib
import threading

import flax.linen as nn
import numpy as np
import pytest

from nvg_jax import jobs, sharding
from nvg_jax.frozen.inception import ImageFeatures
from nvg_jax.frozen.weights import Frozen
from nvg_jax.generator.model import build_generator
from nvg_jax.jobs import evaluation
from nvg_jax.jobs.model import Model
from nvg_jax.tokenizer.model import build_tokenizer

SIDE = 128
MEGABYTE = 2**20


class Means(nn.Module):
    """Sees the means of parts of an image."""

    def __call__(self, images):
        parts = images.reshape(len(images), 16, -1).mean(axis=2)
        return ImageFeatures(parts, parts, parts)


class PeakMemory(threading.Thread):
    """How much memory a process gains at most while the thread runs."""

    def run(self):
        gc.collect()
        self._stopped = threading.Event()
        before = self._used()
        self.gained = 0
        while not self._stopped.wait(0.002):
            self.gained = max(self.gained, self._used() - before)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self._stopped.set()
        self.join()

    def _used(self):
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
def test_memory_beside_the_samples_does_not_grow_with_their_count(
    tiny_config, tmp_path, monkeypatch
):
    config = tiny_config
    config.data.image_size = SIDE
    model = config.generator.model
    model.content_width = model.structure_width = 64  # Heads with room for so many positions.
    generator = build_generator(config)
    config.evaluation.metrics = ("fid", "sfid", "inception_score", "precision_recall")
    config.evaluation.batch_size = 16
    rng = np.random.default_rng(0)

    def generate(model, settings, class_ids, batch_size, *args):
        for start in range(0, len(class_ids), batch_size):
            count = min(batch_size, len(class_ids) - start)
            yield None, rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)

    model = Model(build_tokenizer(config), {}, generator, {}, sharding.create_mesh())
    monkeypatch.setattr(evaluation, "load_model", lambda *args, **options: model)
    monkeypatch.setattr(evaluation, "generate", generate)
    networks = {"features": Frozen(Means(), {})}
    monkeypatch.setattr(evaluation, "_networks", lambda *args: networks)
    real = rng.integers(0, 256, (20, SIDE, SIDE, 3), np.uint8)
    np.savez(tmp_path / "real.npz", arr_0=real)
    config.evaluation.reference = str(tmp_path / "real.npz")

    def memory(count):
        """What evaluating so many samples takes beside their array."""
        config.evaluation.num_samples = count
        with PeakMemory() as peak:
            assert jobs.evaluate(config, str(tmp_path))["fid"] > 0
        return peak.gained - count * SIDE * SIDE * 3

    memory(100)  # Compiles.
    few, many = memory(400), memory(1600)
    # Copies of 1,200 more images would be 59 megabytes, or 236 as floating-point numbers.
    assert many < few + 25 * MEGABYTE, (few / MEGABYTE, many / MEGABYTE)
    assert many < 100 * MEGABYTE
    with np.load(tmp_path / "evaluation" / "samples-3.npz") as samples:
        assert samples["arr_0"].shape == (1600, SIDE, SIDE, 3)
