"""The mesh: what is on it where, on this machine's devices and on simulated ones."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from nvg_jax import sharding
from nvg_jax.errors import UserError


def test_four_devices_share_what_they_can_and_say_what_they_cannot(run_program):
    output = run_program("device_parts", devices=4)
    assert "config.generator.training.batch_size=6 is not divisible by the 4" in output
    assert "data=-1, fsdp=3, tensor=1, which does not share out 4 device(s)" in output


@pytest.mark.slow
def test_a_mesh_of_all_axes_has_the_losses_and_the_samples_of_one_device(run_program):
    print(run_program("all_axes", devices=8))


@pytest.mark.slow
def test_a_step_over_four_devices_is_the_step_over_one(run_program):
    """On the batch's axis, with batch norm, LeCAM and micro-batches."""
    run_program("sharded_step", devices=4)


def test_place_batch_keeps_the_values():
    mesh = sharding.create_mesh()
    batch = sharding.place_batch({"image": np.ones((jax.device_count(), 2))}, mesh)
    np.testing.assert_array_equal(batch["image"], 1.0)


def test_place_batch_makes_floats_of_bytes_of_images_alone():
    mesh = sharding.create_mesh(devices=jax.devices()[:1])
    pixels = np.array([[0, 255]], np.uint8)
    batch = sharding.place_batch({"image": pixels, "segmentation_mask": pixels}, mesh)
    np.testing.assert_array_equal(batch["image"], [[-1.0, 1.0]])
    np.testing.assert_array_equal(batch["segmentation_mask"], pixels)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_any_batch_fits_one_device(batch_size):
    mesh = sharding.create_mesh(devices=jax.devices()[:1])
    assert sharding.process_batch_size(batch_size, mesh, "b") == batch_size


@pytest.mark.parametrize(
    "sizes, message",
    [((-1, -1, 1), "one -1"), ((0, 1, 1), "positive sizes"), ((1, 2, 1), "share out 1 device")],
)
def test_sizes_that_make_no_mesh(sizes, message):
    config = ConfigDict(dict(zip(sharding.AXES, sizes, strict=True)))
    with pytest.raises(UserError, match=message):
        sharding.create_mesh(config, jax.devices()[:1])
