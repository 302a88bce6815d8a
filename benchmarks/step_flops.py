"""Floating-point operations of one training step, an image; needs neither device nor weights.

python -m benchmarks.step_flops --config=configs/nvg_d16.py
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict, config_flags

from nvg_jax import cli, jobs, sharding
from nvg_jax.frozen import weights
from nvg_jax.frozen.weights import NETWORKS, Frozen
from nvg_jax.models.build import build_generator, build_tokenizer
from nvg_jax.training.generator_task import GeneratorTask
from nvg_jax.training.loop import Task
from nvg_jax.training.tokenizer_task import TokenizerTask

_BATCH_SIZE = 8


def _abstract_network(name: str) -> Frozen:
    return Frozen(NETWORKS[name].module, weights.abstract(name))


def _tokenizer_task(config: ConfigDict) -> TokenizerTask:
    networks = map(_abstract_network, ("lpips", "dino"))
    return TokenizerTask(build_tokenizer(config), config.tokenizer.training, 1000, 5, *networks)


def _generator_task(config: ConfigDict, repa_weight: float) -> GeneratorTask:
    training = config.generator.training.copy_and_resolve_references()
    training.repa.weight = repa_weight
    tokenizer = build_tokenizer(config)
    return GeneratorTask(
        build_generator(config),
        tokenizer,
        sharding.unnamed(jax.eval_shape(tokenizer.init, jax.random.key(0), tokenizer.example())),
        training,
        1000,
        jobs.sampling_settings(config),
        _abstract_network("dinov2"),
    )


def _count(task: Task, batch: dict[str, jax.ShapeDtypeStruct]) -> float:
    """Teraflops of a step, an image."""
    key = jax.random.key(0)
    state = jax.eval_shape(lambda key: task.init_state(task.init_variables(key), key), key)
    state = sharding.unnamed(state)
    return task.count_flops(state, batch, key) / _BATCH_SIZE / 1e12


def main() -> None:
    config = flags.FLAGS.config
    side = config.data.image_size
    length = build_tokenizer(config).num_positions

    def array(*shape: int, dtype=jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((_BATCH_SIZE, *shape), dtype)

    images = {"image": array(side, side, 3, dtype=jnp.float32), "label": array()}
    tokens = {"structure": array(length), "tokens": array(2 * length - 1), "label": array()}
    repa_weight = config.generator.training.repa.weight
    print(f"teraflops a training image, {config_flags.get_config_filename(flags.FLAGS['config'])}")
    print(f"  tokenizer            {_count(_tokenizer_task(config), images):9.4f}")
    print(f"  generator            {_count(_generator_task(config, repa_weight), images):9.4f}")
    print(f"  generator, no REPA   {_count(_generator_task(config, 0.0), images):9.4f}")
    print(f"  generator, cached    {_count(_generator_task(config, 0.0), tokens):9.4f}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The config whose steps are counted.")
    flags.mark_flag_as_required("config")
    cli.run(main)
