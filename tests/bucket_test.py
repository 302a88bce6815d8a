"""Checkpoints, weights and compiled programs in a bucket, in a process that finds one."""

import os
import pathlib
import subprocess
import sys

import pytest

_USE = """
import grain, jax, jax.numpy as jnp, numpy as np
from etils import epath
from tests import bucket

bucket.serve()

from nvg_jax import startup, visualize
from nvg_jax.checkpoint import TrainCheckpointer, restore_ema
from nvg_jax.weights import load_weights, save_weights
from tests.states import State

startup.start("gs://bucket/run")
directory = epath.Path("gs://bucket/run/checkpoints")
wanted = State({}, {}, {}, jax.ShapeDtypeStruct((1000,), jnp.float32))

def noise(step):
    return State({}, {}, {}, jax.random.normal(jax.random.key(step), (1000,)))

def iterator(position):
    numbers = iter(grain.MapDataset.range(50).to_iter_dataset())
    for _ in range(position):
        next(numbers)
    return numbers

def steps():
    return sorted(path.name for path in directory.iterdir())

with TrainCheckpointer(directory, "line", keep=2) as checkpointer:
    for step in (1, 2, 3):
        checkpointer.save(step, noise(step), iterator(step))
        assert checkpointer.wait() is None
assert steps() == ["2", "3"], steps()

def restored():
    numbers = iterator(0)
    with TrainCheckpointer(directory, "line", keep=2) as checkpointer:
        state, step = checkpointer.restore(wanted, numbers)
    np.testing.assert_array_equal(state.ema, noise(step).ema)
    assert next(numbers) == step
    return step

assert restored() == 3
assert restore_ema(directory, "line", wanted.ema)[1] == 3

# Storage without renaming: what is being written has its name, but lacks this file.
(directory / "3" / "commit_success.txt").unlink()
assert restored() == 2
assert steps() == ["2"], steps()
with TrainCheckpointer(directory, "line", keep=2) as checkpointer:
    checkpointer.save(3, noise(3), iterator(3))
    checkpointer.save(4, noise(4), iterator(4))
(array,) = list((directory / "4" / "ema" / "d").iterdir())[:1]
array.write_bytes(array.read_bytes()[:-1] + b"?")
assert restored() == 3
assert steps() == ["3", "4.damaged"], steps()

for name in ("weights", "weights.safetensors"):
    weights = epath.Path("gs://bucket/run") / name
    save_weights(weights, {"ema": noise(5).ema}, "line")
    loaded = load_weights(weights, {"ema": wanted.ema}, "line")
    np.testing.assert_array_equal(loaded["ema"], noise(5).ema)
visualize.save_png(epath.Path("gs://bucket/run/a.png"), np.zeros((8, 8, 3), np.uint8))
assert epath.Path("gs://bucket/run/a.png").stat().length > 50
assert jax.config.jax_compilation_cache_dir == "gs://bucket/run/compilation_cache"
"""


def test_a_workdir_in_a_bucket():
    pytest.importorskip("google.cloud.storage", reason="Orbax needs google-cloud-storage")
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    paths = ":".join([str(pathlib.Path(__file__).parents[1]), *filter(None, sys.path)])
    result = subprocess.run(
        [sys.executable, "-c", _USE],
        env=environment | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    assert "The checkpoint of step 4 is damaged (gs://bucket/run" in result.stderr
