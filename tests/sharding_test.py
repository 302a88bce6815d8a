"""The mesh: what is on it where, on this machine's devices and on four simulated ones."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from nvg_jax import sharding
from nvg_jax.errors import UserError

_FOUR_DEVICES = """
import re

import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from configs import nvg_digits
from nvg_jax import sharding
from nvg_jax.errors import UserError
from nvg_jax.generator.build import build_tokenizer
from nvg_jax.generator.content import ContentModel
from nvg_jax.training import optimizer
from nvg_jax.training.state import TrainState

COLLECTIVE = re.compile("all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter")


def mesh_of(data, fsdp, tensor):
    return sharding.create_mesh(ConfigDict({"data": data, "fsdp": fsdp, "tensor": tensor}))


# Batches.
mesh = sharding.create_mesh()
assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 1}
batch = sharding.place_batch({"x": np.arange(8)}, mesh)
assert [int(s.data[0]) for s in batch["x"].addressable_shards] == [0, 2, 4, 6]
assert sharding.process_batch_size(8, mesh, "batch") == 8
assert sharding.process_batch_size(6, mesh_of(1, -1, 2), "batch") == 6
batch = sharding.place_batch({"x": np.arange(8)}, mesh_of(1, 2, -1))
assert sorted(int(s.data[0]) for s in batch["x"].addressable_shards) == [0, 0, 4, 4]
for refused in (
    lambda: sharding.process_batch_size(6, mesh, "config.generator.training.batch_size"),
    lambda: mesh_of(-1, 3, 1),
):
    try:
        refused()
    except UserError as error:
        print(error)

# Parameters, and all that the optimizer keeps of them.
config = nvg_digits.get_config()
model = ContentModel(
    depth=2, width=64, num_heads=2, grid=(4, 4), latent_channels=4, vocab_size=16, num_classes=9
)
canvas, ids = jnp.zeros((1, 16, 4)), jnp.zeros(1, jnp.int32)


def state():
    variables = model.init(
        jax.random.key(0), canvas, jnp.zeros((1, 16), jnp.int32), ids, ids, jnp.ones(6)
    )
    return TrainState.create(variables, optimizer.create(config.generator.training, 10))


mesh = mesh_of(1, 2, 2)
abstract = sharding.abstract(state, mesh)
kernels = {
    name: leaf["kernel"].sharding.spec
    for name, leaf in abstract.params["stack"]["blocks"].items()
    if "kernel" in leaf
}
assert kernels == {
    "modulation": P(None, "fsdp", "tensor"),
    "linear1": P(None, "fsdp", None, "tensor"),
    "linear2": P(None, None, "tensor", "fsdp"),
}, kernels
places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
adam = places.opt_state[1][0]
assert adam.mu == adam.nu == places.ema["params"] == places.params
made = sharding.make(state, abstract)
assert sharding.places(made) == sharding.places(abstract)
kernel = made.params["stack"]["blocks"]["linear1"]["kernel"]
assert kernel.addressable_shards[0].data.shape == (2, 32, 7, 32)
# What 3 devices cannot share stays whole.
three = sharding.create_mesh(ConfigDict({"data": 1, "fsdp": 3, "tensor": 1}), jax.devices()[:3])
assert set(sharding.places(sharding.abstract(state, three))) == {sharding.replicated(three)}

# Tokenization needs no communication, whatever the mesh.
config.tokenizer.model.update(multipliers=(1, 1), latent_channels=4, vocab_size=16)
config.data.image_size = 8
tokenizer = build_tokenizer(config)
shapes = sharding.unnamed(jax.eval_shape(tokenizer.init, jax.random.key(0), tokenizer.example()))
rng = np.random.default_rng(0)
variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
images = rng.uniform(-1, 1, (8, 8, 8, 3)).astype(np.float32)


@jax.jit
def tokenize(variables, images):
    return tokenizer.apply(variables, images, method="tokenize")[0]


@jax.jit
def loss(variables, images):
    output = tokenizer.apply(variables, images)
    return jnp.mean((output.images - images) ** 2)


expected = tokenize(variables, images)
for mesh in (mesh_of(2, 2, 1), mesh_of(2, 1, 2)):
    with jax.set_mesh(mesh):
        placed = jax.device_put(variables, sharding.replicated(mesh))
        batch = sharding.place_batch(images, mesh)
        program = tokenize.lower(placed, batch).compile()
        assert not COLLECTIVE.search(program.as_text())
        jax.tree.map(np.testing.assert_array_equal, program(placed, batch), expected)
# What the check above can find: a mean over the batch is a sum over the devices.
with jax.set_mesh(mesh):
    assert COLLECTIVE.search(loss.lower(placed, batch).compile().as_text())
"""


def test_four_devices():
    """Batches are split or refused, states placed, images tokenized without communication."""
    result = subprocess.run(
        [sys.executable, "-c", _FOUR_DEVICES],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "config.generator.training.batch_size=6 is not divisible by the 4" in result.stdout
    assert "data=-1, fsdp=3, tensor=1, which does not share out 4 device(s)" in result.stdout


def test_place_batch_keeps_the_values():
    mesh = sharding.create_mesh()
    batch = sharding.place_batch({"image": np.ones((jax.device_count(), 2))}, mesh)
    np.testing.assert_array_equal(batch["image"], 1.0)


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
