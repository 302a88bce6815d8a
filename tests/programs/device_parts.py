"""On four devices: batches are split or refused, states placed, images tokenized by each alone."""

import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from configs import nvg_digits
from nvg_jax import sharding
from nvg_jax.clustering import cluster, principal
from nvg_jax.errors import UserError
from nvg_jax.generator.content import Content
from nvg_jax.generator.sizes import Sizes, StackSizes
from nvg_jax.tokenizer import inference
from nvg_jax.tokenizer.model import build_tokenizer
from nvg_jax.training import optimizer
from nvg_jax.training.state import TrainState
from nvg_jax.weights import load_weights, save_weights

COLLECTIVE = re.compile("all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter")


def mesh_of(data, fsdp, tensor):
    return sharding.create_mesh(ConfigDict({"data": data, "fsdp": fsdp, "tensor": tensor}))


def batches():
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


def states():
    """Parameters, and all that the optimizer keeps of them."""
    config = nvg_digits.get_config()
    stack = StackSizes(depth=2, width=64, num_heads=2)
    model = Content(Sizes(stack, stack, (4, 4), latent_channels=4, vocab_size=16, num_classes=9))

    def state():
        params = model.init_params(jax.random.key(0))
        return TrainState.create({"params": params}, optimizer.create(config.generator.training, 9))

    abstract = sharding.abstract(state, mesh_of(1, 2, 2))
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
    places = sharding.of(abstract)
    adam = places.opt_state[1][0]
    assert adam.mu == adam.nu == places.ema["params"] == places.params
    made = sharding.make(state, like=abstract)
    assert sharding.of(made) == places
    kernel = made.params["stack"]["blocks"]["linear1"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 32, 7, 32)
    # What 3 devices cannot share stays whole.
    three = sharding.create_mesh(ConfigDict({"data": 1, "fsdp": 3, "tensor": 1}), jax.devices()[:3])
    places = jax.tree.leaves(sharding.of(sharding.abstract(state, three)))
    assert set(places) == {sharding.replicated(three)}


def weights():
    """Written from one mesh and read onto others, as a file too."""
    tokenizer = build_tokenizer(nvg_digits.get_config())

    def places(mesh):
        return sharding.abstract(tokenizer.init_variables, mesh, jax.random.key(0))

    split = places(mesh_of(1, 2, 2))
    variables = sharding.make(tokenizer.init_variables, jax.random.key(0), like=split)
    with tempfile.TemporaryDirectory() as directory:
        for name in ("weights", "weights.safetensors"):
            save_weights(f"{directory}/{name}", variables, tokenizer.architecture)
            for mesh in (mesh_of(4, 1, 1), mesh_of(2, 2, 1), mesh_of(1, 2, 2)):
                wanted = places(mesh)
                loaded = load_weights(f"{directory}/{name}", wanted, tokenizer.architecture)
                assert sharding.of(loaded) == sharding.of(wanted)
                jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def tokenization():
    """Needs no communication, whatever the mesh."""
    config = nvg_digits.get_config()
    config.tokenizer.model.update(multipliers=(1, 1), latent_channels=4, vocab_size=16)
    config.data.image_size = 8
    tokenizer = build_tokenizer(config)
    shapes = sharding.unnamed(jax.eval_shape(tokenizer.init_variables, jax.random.key(0)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    images = rng.uniform(-1, 1, (8, 8, 8, 3)).astype(np.float32)

    @jax.jit
    def loss(variables, images):
        return jnp.mean((tokenizer.apply(variables, images).images - images) ** 2)

    expected = inference.sequences_of(tokenizer, variables, images)
    for mesh in (mesh_of(2, 2, 1), mesh_of(2, 1, 2)):
        with jax.set_mesh(mesh):
            placed = jax.device_put(variables, sharding.replicated(mesh))
            batch = sharding.place_batch({"image": images}, mesh)["image"]
            program = inference.sequences_of.lower(tokenizer, placed, batch).compile()
            assert not COLLECTIVE.search(program.as_text())
            jax.tree.map(np.testing.assert_array_equal, program(placed, batch), expected)
    # What the check above can find: a mean over the batch is a sum over the devices.
    with jax.set_mesh(mesh):
        assert COLLECTIVE.search(loss.lower(placed, batch).compile().as_text())


def clustering():
    """Each device clusters its own images: alone, inside of another shard_map, with gradients."""

    def by_device(points):
        return sharding.by_device(cluster, points)

    points = np.random.default_rng(0).standard_normal((8, 8, 2), np.float32)
    expected = np.asarray(jax.jit(cluster)(points))
    mesh = sharding.create_mesh()
    spec = P(sharding.BATCH_AXES)
    sharded = sharding.place_batch({"x": points}, mesh)["x"]
    # With no mesh set, the devices agree on every round.
    assert COLLECTIVE.search(jax.jit(by_device).lower(sharded).compile().as_text())
    with jax.set_mesh(mesh):
        program = jax.jit(by_device).lower(sharded).compile()
        assert not COLLECTIVE.search(program.as_text())
        labels = program(sharded)
        assert labels.sharding.is_equivalent_to(sharded.sharding, labels.ndim)
        np.testing.assert_array_equal(labels, expected)
        inside = jax.shard_map(by_device, in_specs=spec, out_specs=spec, check_vma=False)
        np.testing.assert_array_equal(jax.jit(inside)(sharded), expected)
        gradient = jax.jit(jax.grad(lambda x: (x * by_device(x)[..., None]).sum()))(sharded)
        np.testing.assert_array_equal(jax.jit(by_device)(points[:6]), expected[:6])
        halved = jax.jit(lambda x: sharding.by_device(principal, x))(sharded)
    np.testing.assert_array_equal(halved, jax.jit(principal)(points))
    np.testing.assert_array_equal(gradient, np.broadcast_to(expected[..., None], points.shape))


if __name__ == "__main__":
    assert jax.device_count() == 4
    batches()
    states()
    weights()
    tokenization()
    clustering()
