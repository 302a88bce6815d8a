"""Parameters, and floating-point operations of training and sampling, an image; needs no device.

python -m benchmarks.step_flops --config=configs/nvg_d16.py
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict, config_flags

from nvg_jax import cli, granularity, sharding
from nvg_jax.generator.settings import Settings
from nvg_jax.jobs.compilation import abstract_task
from nvg_jax.jobs.method import METHODS
from nvg_jax.tokenizer.model import build_tokenizer
from nvg_jax.training import flops
from nvg_jax.training.loop import Schedule, count_flops

_BATCH_SIZE = 8


def _count(config: ConfigDict, name: str, batch: dict[str, jax.ShapeDtypeStruct]) -> float:
    """Teraflops of a step, an image, on one device."""
    mesh = sharding.create_mesh(devices=jax.devices()[:1])
    task = abstract_task(config, name, mesh, Schedule(_BATCH_SIZE, 1000, 5))
    state = sharding.abstract(task.init_state, mesh, jax.random.key(0))
    with jax.set_mesh(mesh):
        flops = count_flops(task, state, batch, jax.random.key(0))
    return flops / _BATCH_SIZE / 1e12


def main() -> None:
    config = flags.FLAGS.config
    side = config.data.image_size
    tokenizer = build_tokenizer(config)

    def array(*shape: int, dtype=jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((_BATCH_SIZE, *shape), dtype)

    images = {"image": array(side, side, 3, dtype=jnp.float32), "label": array()}
    tokens = {"structure": array(tokenizer.num_positions), "label": array()}
    tokens["tokens"] = array(granularity.num_tokens(tokenizer.stages))
    without_repa = config.copy_and_resolve_references()
    without_repa.generator.training.repa.weight = 0.0
    print(f"teraflops a training image, {config_flags.get_config_filename(flags.FLAGS['config'])}")
    print(f"  tokenizer            {_count(config, 'tokenizer', images):9.3g}")
    print(f"  generator            {_count(config, 'generator', images):9.3g}")
    print(f"  generator, no REPA   {_count(without_repa, 'generator', images):9.3g}")
    if config.method == "nvg":
        print(f"  generator, cached    {_count(without_repa, 'generator', tokens):9.3g}")
    method = METHODS[config.method]
    models = [build(config) for build in (method.build_tokenizer, method.build_generator)]
    key = jax.random.key(0)
    variables = [sharding.unnamed(jax.eval_shape(each.init_variables, key)) for each in models]

    def sample(variables: Any, key: Any) -> Any:
        settings, classes = Settings.from_config(config.sampling), jnp.zeros(_BATCH_SIZE, jnp.int32)
        image_keys = jax.random.split(key, _BATCH_SIZE)
        return method.task.sample(*models, settings, *variables, classes, image_keys)

    sampling = flops.count(jax.make_jaxpr(sample)(variables, key)) / _BATCH_SIZE / 1e12
    print(f"  sampling, no decoder {sampling:9.3g}")
    print("parameters")
    for name, of_one in zip(("tokenizer", "generator"), variables, strict=True):
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(of_one["params"]))
        print(f"  {name:20} {count:>9,}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The config whose steps are counted.")
    flags.mark_flag_as_required("config")
    cli.run(main)
