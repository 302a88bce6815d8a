"""Images a second of sampling and its parts, beside the rate of a large matrix product.

    python -m benchmarks.sampling --config=configs/nvg_d16.py --batch_sizes=1,8

What is timed is what the job `sample` runs, with random weights, which cost what trained ones do:

    whole       from class ids to images
    content     with the structure of all stages given
    structure   what the whole takes more than content and decoder
    decoder     from sequences to images

Of a baseline (`config.method`), which makes no structure, there is `network` in place of the two.

`of product` is a part's arithmetic over that of one large matrix product of the same type in the
same time, both in this run: 100 % would be a machine that does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from benchmarks import machine
from nvg_jax import cli, sharding
from nvg_jax.generator import sampler
from nvg_jax.generator.given import given_structure
from nvg_jax.jobs.method import METHODS
from nvg_jax.tokenizer import inference
from nvg_jax.training import flops


def parts(config: ConfigDict, batch: int) -> dict[str, Callable[[], Any]]:
    """What can be run by itself."""
    method = METHODS[config.method]
    tokenizer, generator = method.build_tokenizer(config), method.build_generator(config)
    settings = sampler.Settings.from_config(config.sampling)

    of_tokenizer, of_generator = (
        sharding.make(module.init_variables, jax.random.key(0)) for module in (tokenizer, generator)
    )
    class_id = np.arange(batch, dtype=np.int32) % config.data.num_classes
    image_keys = jax.random.split(jax.random.key(1), batch)

    def sequence(**given: Any) -> Any:
        return method.task.sample(
            tokenizer,
            generator,
            settings,
            of_tokenizer,
            of_generator,
            class_id,
            image_keys,
            **given,
        )

    def images(made: Any) -> Any:
        return inference.images_of(tokenizer, of_tokenizer, made)

    made = sequence()
    runs = {"whole": lambda: images(sequence()), "decoder": lambda: images(made)}
    if config.method == "nvg":
        given = given_structure(made.structure, tokenizer.last_stage + 1)
        runs["content"] = lambda: sequence(given=given)
    return runs


def measure(config: ConfigDict, batch: int, rate: float, repeats: int) -> None:
    """Prints a line for each part."""
    runs = parts(config, batch)
    rest = "structure" if "content" in runs else "network"
    counted = {name: flops.count(jax.make_jaxpr(run)()) for name, run in runs.items()}
    seconds = {name: machine.best_seconds(run, repeats) for name, run in runs.items()}
    for found in (counted, seconds):
        found[rest] = 2 * found["whole"] - sum(found.values())
    for name in sorted(seconds, key=seconds.get, reverse=True):
        done = counted[name] / seconds[name]
        print(
            f"{batch:6d}  {name:9}  {seconds[name]:8.3f}  {batch / seconds[name]:9.3f}"
            f"  {done / 1e12:10.3f}  {done / rate:10.0%}  {machine.peak_memory():>9}"
        )


def main() -> None:
    config = flags.FLAGS.config
    sizes = machine.batch_sizes(flags.FLAGS.batch_sizes)
    dtype = config.generator.model.dtype
    rate = machine.product_rate(dtype)
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {path}, "
        f"{config.sampling.flow_steps} flow steps; a large {dtype} product: "
        f"{rate / 1e12:.3f} teraflop/s"
    )
    print(" batch  part         seconds   images/s  teraflop/s  of product     memory")
    for size in sizes:
        measure(config, size, rate, flags.FLAGS.repeats)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The config whose sampling is timed.")
    flags.DEFINE_list("batch_sizes", ["1", "8"], "Images at once.")
    flags.DEFINE_integer("repeats", 3, "Timed runs of each part.", lower_bound=1)
    flags.mark_flag_as_required("config")
    cli.run(main)
