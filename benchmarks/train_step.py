"""Images a second, utilisation and memory of one training step, by batch size.

    python -m benchmarks.train_step --config=configs/nvg_d16.py --task=generator --batch_sizes=32,64

The step is the one that training runs, on random images and with random weights (the frozen
networks' included), which cost what trained ones do. For the generator three versions are timed in
turns in one run, and compared with the first:

    images      images, tokenized on the fly, aligned with DINOv2 (REPA)
    no REPA     images, tokenized on the fly
    cached      tokens in place of images

A baseline (`config.method`) has neither of the last two: its `images` are without REPA.

Teraflop/s are those of a device; `of product` is their share of one large matrix product's in the
same run, `of peak` of what its maker publishes. A batch that does not fit is reported as such, and
ends the list.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.errors import JaxRuntimeError
from ml_collections import ConfigDict, config_flags

from benchmarks import machine
from nvg_jax import cli, granularity, hardware, sharding
from nvg_jax.frozen.weights import load_network
from nvg_jax.generator.sampler import Settings
from nvg_jax.generator.training import GeneratorTask
from nvg_jax.jobs.method import METHODS
from nvg_jax.tokenizer.training import TokenizerTask
from nvg_jax.training.loop import Schedule, Task, count_flops, make_step

Batch = dict[str, jax.Array]
SCHEDULE = Schedule(batch_size=1, num_steps=1000, epoch_steps=0)


def tokenizer_versions(config: ConfigDict) -> dict[str, Task]:
    """The tokenizer's task with the config's losses."""
    training = config.tokenizer.training
    lpips = load_network("lpips", random=True) if training.lpips_weight else None
    dino = load_network("dino", random=True) if training.adversarial_weight else None
    tokenizer = METHODS[config.method].build_tokenizer(config)
    return {"images": TokenizerTask(tokenizer, training, SCHEDULE, lpips, dino)}


def generator_versions(config: ConfigDict) -> dict[str, Task]:
    """The generator's task as configured, and without what costs extra."""
    method = METHODS[config.method]
    tokenizer = method.build_tokenizer(config)
    variables = sharding.make(tokenizer.init_variables, jax.random.key(0))

    def task(repa_weight: float) -> GeneratorTask:
        training = config.generator.training.copy_and_resolve_references()
        training.repa.weight = repa_weight
        dinov2 = load_network("dinov2", random=True) if repa_weight else None
        return method.task(
            method.build_generator(config),
            tokenizer,
            variables,
            training,
            SCHEDULE,
            Settings.from_config(config.sampling),
            dinov2,
        )

    plain = task(0.0)
    if config.method != "nvg":
        return {"images": plain}
    repa_weight = config.generator.training.repa.weight
    versions = {"images": task(repa_weight)} if repa_weight else {}
    return versions | {"no REPA": plain, "cached": plain}


def random_batch(config: ConfigDict, version: str, size: int) -> Batch:
    """Images, or tokens in their place, over all devices."""
    random = np.random.default_rng(0)
    side = config.data.image_size
    label = random.integers(config.data.num_classes, size=size, dtype=np.int32)
    if version == "cached":
        tokenizer = METHODS[config.method].build_tokenizer(config)
        length = tokenizer.num_positions
        structure = random.permuted(np.tile(np.arange(length, dtype=np.int32), (size, 1)), axis=1)
        vocab = tokenizer.vocab_size
        num_tokens = granularity.num_tokens(tokenizer.stages)
        tokens = random.integers(vocab, size=(size, num_tokens), dtype=np.int32)
        batch = {"structure": structure, "tokens": tokens, "label": label}
    else:
        image = random.uniform(-1, 1, (size, side, side, 3)).astype(np.float32)
        batch = {"image": image, "label": label}
    return sharding.place_batch(batch, sharding.create_mesh())


def measure(
    config: ConfigDict, versions: dict[str, Task], size: int, repeats: int, rate: float
) -> None:
    """Prints a line for each version; JaxRuntimeError if the batch does not fit."""
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    counted, steps = {}, {}
    for turn in range(repeats + 1):
        for name, task in versions.items():
            # A state of one version at a time, so that each has the memory to itself.
            state, batch = fresh_state(task), random_batch(config, name, size)
            key = jax.random.key(turn)
            if turn == 0:
                counted[name] = count_flops(task, state, batch, key)
                steps[name] = make_step(task, state)
            state = jax.block_until_ready(steps[name](state, task.frozen, batch, key)[0])
            start = time.perf_counter()
            state, metrics = steps[name](state, task.frozen, batch, key)
            jax.block_until_ready((state, metrics))
            if turn:
                seconds[name].append(time.perf_counter() - start)
            del state, metrics
    baseline = min(next(iter(seconds.values())))
    for name, measured in seconds.items():
        best = min(measured)
        done = counted[name] / best / jax.device_count()
        peak = hardware.chip(jax.devices()[0])
        print(
            f"{size:6d}  {name:8}  {size / best:9.2f}  {done / 1e12:10.3f}  {done / rate:10.0%}"
            f"  {f'{done / peak.flops:.1%}' if peak else '-':>7}"
            f"  {machine.peak_memory():>9}  {baseline / best:6.2f}"
        )


def fresh_state(task: Task) -> Any:
    init_state, key = task.init_state, jax.random.key(0)
    like = sharding.abstract(init_state, sharding.create_mesh(), key)
    return sharding.make(init_state, key, like=like)


def main() -> None:
    given = flags.FLAGS
    config = given.config
    sizes = machine.batch_sizes(given.batch_sizes)
    device = jax.devices()[0].device_kind
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    dtype = config.generator.model.dtype if given.task == "generator" else "float32"
    rate = machine.product_rate(dtype)
    print(
        f"{jax.device_count()} x {device}, jax {jax.__version__}, {path}; "
        f"a large {dtype} product: {rate / 1e12:.3f} teraflop/s"
    )
    with jax.set_mesh(sharding.create_mesh()):
        versions = (generator_versions if given.task == "generator" else tokenizer_versions)(config)
        print(" batch  version   images/s  teraflop/s  of product  of peak     memory   ratio")
        for size in sizes:
            try:
                measure(config, versions, size, given.repeats, rate)
            except JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                print(f"{size:6d}  does not fit")
                break


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The config whose step is timed.")
    flags.DEFINE_enum("task", "generator", ["generator", "tokenizer"], "What is trained.")
    flags.DEFINE_list("batch_sizes", ["32"], "Images of all devices together.")
    flags.DEFINE_integer("repeats", 5, "Timed steps of each version.", lower_bound=1)
    flags.mark_flag_as_required("config")
    cli.run(main)
