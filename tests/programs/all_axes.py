"""On eight devices: trains and samples on a mesh of all axes, and compares with one device."""

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import nvg_digits
from nvg_jax import jobs, sharding
from nvg_jax.generator.model import build_generator
from nvg_jax.generator.sampler import Settings
from nvg_jax.generator.training import GeneratorTask
from nvg_jax.tokenizer.model import build_tokenizer
from nvg_jax.tokenizer.training import TokenizerTask
from nvg_jax.training.loop import Schedule, make_step

STEPS, BATCH = 8, 16
KEY = jax.random.key(0)


def small_config():
    config = nvg_digits.get_config()
    config.data.image_size = 4
    model = config.tokenizer.model
    model.multipliers, model.latent_channels, model.vocab_size = (1, 1), 4, 16
    model = config.generator.model
    model.depth, model.content_width, model.structure_width = 2, 64, 64
    model.content_heads = model.structure_heads = 2
    model.drop_path = 0.1
    config.sampling.flow_steps = 3
    for training in (config.tokenizer.training, config.generator.training):
        training.warmup_steps = 2
    config.tokenizer.training.codebook_warmup_epochs = 0.0
    return config


def made(init, mesh):
    return sharding.make(init, KEY, like=sharding.abstract(init, mesh, KEY))


def run(config, name, mesh):
    """The losses of all steps; of the generator also samples."""
    tokenizer, generator = build_tokenizer(config), build_generator(config)
    settings, schedule = Settings.from_config(config.sampling), Schedule(BATCH, STEPS, STEPS)
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (STEPS, BATCH, 4, 4, 3)).astype(np.float32)
    label = rng.integers(10, size=(STEPS, BATCH)).astype(np.int32)
    with jax.set_mesh(mesh):
        variables = made(tokenizer.init_variables, mesh)
        training = config[name].training
        if name == "tokenizer":
            task = TokenizerTask(tokenizer, training, schedule)
        else:
            task = GeneratorTask(generator, tokenizer, variables, training, schedule, settings)
        state = made(task.init_state, mesh)
        step, places, losses = make_step(task, state), sharding.of(state), []
        for number in range(STEPS):
            batch = {"image": image[number], "label": label[number]}
            key = jax.random.fold_in(KEY, number)
            state, metrics = step(state, task.frozen, sharding.place_batch(batch, mesh), key)
            losses.append(float(metrics["loss"]))
        assert sharding.of(state) == places
    if name == "tokenizer":
        return losses, None
    model = jobs.Model(tokenizer, variables, generator, state.ema, mesh)
    # Samples are equal exactly, which has to hold as users compile.
    jax.config.update("jax_disable_most_optimizations", False)
    ((sequence, _),) = jobs.generate(model, settings, np.arange(BATCH) % 10, quiet=True)
    jax.config.update("jax_disable_most_optimizations", True)
    return losses, sequence


if __name__ == "__main__":
    assert jax.device_count() == 8
    config = small_config()
    one = sharding.create_mesh(devices=jax.devices()[:1])
    mesh = sharding.create_mesh(ConfigDict(dict.fromkeys(sharding.AXES, 2)))
    for name in ("tokenizer", "generator"):
        expected, expected_sequence = run(config, name, one)
        assert expected[-1] < expected[0]
        losses, sequence = run(config, name, mesh)
        print(name, "largest difference", np.abs(np.subtract(losses, expected)).max())
        np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-4)
        jax.tree.map(np.testing.assert_array_equal, sequence, expected_sequence)
