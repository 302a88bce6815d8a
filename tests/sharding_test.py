"""Batches on the mesh of this machine's devices, and on a simulated one of four."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from nvg_jax import sharding
from nvg_jax.errors import UserError

FOUR_DEVICES = """
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from nvg_jax import sharding
from nvg_jax.errors import UserError
mesh = sharding.create_mesh()
batch = sharding.place_batch({"x": np.arange(8)}, mesh)
assert [int(s.data[0]) for s in batch["x"].addressable_shards] == [0, 2, 4, 6]
assert sharding.process_batch_size(8, mesh, "batch") == 8
try:
    sharding.process_batch_size(6, mesh, "config.generator.training.batch_size")
except UserError as error:
    print(error)
"""


def test_place_batch_keeps_the_values():
    mesh = sharding.create_mesh()
    batch = sharding.place_batch({"image": np.ones((jax.device_count(), 2))}, mesh)
    np.testing.assert_array_equal(batch["image"], 1.0)


def test_batches_are_split_over_devices_or_refused():
    result = subprocess.run(
        [sys.executable, "-c", FOUR_DEVICES], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    expected = "config.generator.training.batch_size=6 is not divisible by the 4 devices"
    assert expected in result.stdout


@pytest.mark.parametrize("batch_size", [1, 3])
def test_any_batch_fits_one_device(batch_size):
    if jax.device_count() == 1:
        assert sharding.process_batch_size(batch_size, sharding.create_mesh(), "b") == batch_size
    else:
        with pytest.raises(UserError):
            sharding.process_batch_size(batch_size, sharding.create_mesh(), "b")
