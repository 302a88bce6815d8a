"""On four devices: one step of each training with every loss, compared with one device."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import nvg_digits
from nvg_jax import sharding
from nvg_jax.frozen.vit import VisionTransformer
from nvg_jax.frozen.weights import Frozen
from nvg_jax.generator.model import build_generator
from nvg_jax.generator.sampler import Settings
from nvg_jax.generator.training import GeneratorTask
from nvg_jax.tokenizer.model import build_tokenizer
from nvg_jax.tokenizer.training import TokenizerTask
from nvg_jax.training.loop import Schedule, make_step

KEY = jax.random.key(0)
SCHEDULE = Schedule(8, num_steps=100, epoch_steps=0)


def small_config():
    config = nvg_digits.get_config()
    model = config.tokenizer.model
    model.multipliers, model.latent_channels, model.vocab_size = (1, 1, 1), 4, 16
    model = config.generator.model
    model.depth, model.content_width, model.structure_width, model.content_heads = 1, 32, 32, 1
    training = config.tokenizer.training
    training.adversarial_weight, training.discriminator.input_size = 0.1, 16
    return config


def tokenizer_task(config):
    dino = VisionTransformer(16, width=32, num_heads=2, native_grid=2, layer_scale=False, depth=12)
    dino = Frozen(dino, jax.jit(dino.init)(KEY, jnp.zeros((1, 16, 16, 3))))
    return TokenizerTask(build_tokenizer(config), config.tokenizer.training, SCHEDULE, dino=dino)


def generator_task(config, microbatches):
    training = config.generator.training.copy_and_resolve_references()
    training.microbatches = microbatches
    tokenizer = build_tokenizer(config)
    variables = sharding.make(tokenizer.init_variables, KEY)
    settings = Settings.from_config(config.sampling)
    return GeneratorTask(
        build_generator(config), tokenizer, variables, training, SCHEDULE, settings
    )


def run(task, devices):
    """The metrics of a step, and the discriminator's side after it."""
    random = np.random.default_rng(0)
    image = random.uniform(-1, 1, (8, 16, 16, 3)).astype(np.float32)
    batch = {"image": image, "label": np.arange(8, dtype=np.int32)}
    mesh = sharding.create_mesh(devices=jax.devices()[:devices])
    start = sharding.make(task.init_state, KEY), task.frozen
    state, frozen = jax.device_put(jax.device_get(start), sharding.replicated(mesh))
    with jax.set_mesh(mesh):
        batch = sharding.place_batch(batch, mesh)
        state, metrics = make_step(task, state)(state, frozen, batch, KEY)
    return jax.device_get((metrics, state.adversary))


if __name__ == "__main__":
    assert jax.device_count() == 4
    config = small_config()
    for task, divided in (
        (tokenizer_task(config), tokenizer_task(config)),
        (generator_task(config, 1), generator_task(config, 2)),
    ):
        one, four = run(task, 1), run(divided, 4)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(four), strict=True
        ):
            name = jax.tree_util.keystr(path)
            if "opt_state" in name or name.startswith("[0]") or "stats" in name:
                np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=name)
