"""The job `train`: the tokenizer, the generator, and a picture of its samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from nvg_jax import sharding, startup
from nvg_jax.data import pipeline, token_cache
from nvg_jax.errors import UserError
from nvg_jax.generator.build import build_generator, build_tokenizer
from nvg_jax.generator.training import GeneratorTask
from nvg_jax.jobs.generation import requested_classes, sample, sampling_settings
from nvg_jax.jobs.model import (
    Variables,
    frozen_network,
    load_generator,
    load_tokenizer,
    save_config,
)
from nvg_jax.jobs.tokenization import tokenize
from nvg_jax.tokenizer.model import Tokenizer
from nvg_jax.tokenizer.training import TokenizerTask, canvas_moments, with_canvas_scales
from nvg_jax.training import loop
from nvg_jax.training.state import TrainState


def train(config: ConfigDict, workdir: str) -> None:
    """Brings the workdir from wherever it is to a trained model and a picture of its samples.

    Trains the tokenizer, unless `config.tokenizer.checkpoint` names one, then the generator, each
    from its last checkpoint. With `config.token_cache.directory` the images are tokenized in
    between, unless that is done.
    """
    mesh = sharding.create_mesh(config.mesh)
    tokenizer, generator = build_tokenizer(config), build_generator(config)
    task_config = config.generator.training
    cache = config.token_cache.directory
    if cache and task_config.repa.weight:
        raise UserError(
            "REPA needs images, which a token cache does not hold: set "
            "--config.generator.training.repa.weight=0, or leave config.token_cache.directory empty"
        )
    is_cached = bool(cache) and token_cache.is_complete(cache)
    num_images = token_cache.num_images(cache) if is_cached else _num_images(config)
    schedule = checked_schedule(task_config, "generator", mesh, num_images)
    # What the samples at the end need is checked before hours of training.
    requested_classes(config, config.sampling.num_samples)
    sharding.process_batch_size(config.sampling.batch_size, mesh, "config.sampling.batch_size")
    dinov2 = frozen_network(config, "dinov2") if task_config.repa.weight else None
    with jax.set_mesh(mesh), loop.stop_signal() as stop:
        if config.tokenizer.checkpoint:
            tokenizer_variables = load_tokenizer(config, workdir, tokenizer)
        else:
            tokenizer_variables = _train_tokenizer(config, workdir, tokenizer, mesh, stop)
        if cache:
            # No process may begin the cache while another has still to look for it.
            multihost_utils.sync_global_devices("looked for a token cache")
            if not is_cached:
                tokenize(config, workdir, stop)
        task = GeneratorTask(
            generator,
            tokenizer,
            tokenizer_variables,
            task_config,
            schedule.num_steps,
            sampling_settings(config),
            dinov2,
        )
        initial = None
        if config.generator.checkpoint:
            initial = load_generator(config, workdir, generator)
        if cache:
            data = _cached_data(config, schedule, mesh, tokenizer, tokenizer_variables)
        else:
            data = _training_data(config, schedule, mesh, seed=config.seed + 1)
        with data as iterator:
            loop.train(
                task,
                task_config,
                schedule,
                iterator,
                f"{workdir}/generator",
                mesh,
                seed=config.seed + 1,
                stop=stop,
                initial=initial,
                begin=lambda: save_config(config, workdir),
            )
    sample(config, workdir)


def _train_tokenizer(
    config: ConfigDict, workdir: str, tokenizer: Tokenizer, mesh: Mesh, stop: Callable[[], bool]
) -> Variables:
    task_config = config.tokenizer.training
    schedule = checked_schedule(task_config, "tokenizer", mesh, _num_images(config))
    task = TokenizerTask(
        tokenizer,
        task_config,
        schedule.num_steps,
        schedule.epoch_steps,
        frozen_network(config, "lpips") if task_config.lpips_weight else None,
        frozen_network(config, "dino") if task_config.adversarial_weight else None,
    )

    def finish(state: TrainState) -> TrainState:
        """Measures the canvases' scales with the averaged weights, on training crops."""
        moments = []
        with _training_data(config, schedule, mesh, seed=config.seed + 2) as data:
            for _ in tqdm(range(config.tokenizer.scale_batches), "canvas scales", disable=None):
                images = sharding.place_batch(next(data)["image"], mesh)
                moments.append(sharding.on_host(canvas_moments(tokenizer, state.ema, images)))
        return state.replace(ema=with_canvas_scales(state.ema, moments))

    with _training_data(config, schedule, mesh, seed=config.seed) as iterator:
        state = loop.train(
            task,
            task_config,
            schedule,
            iterator,
            f"{workdir}/tokenizer",
            mesh,
            seed=config.seed,
            stop=stop,
            begin=lambda: save_config(config, workdir),
            finish=finish,
        )
    return state.ema


def _num_images(config: ConfigDict) -> int:
    return pipeline.num_examples(config.data, config.data.train_split)


def checked_schedule(
    task_config: ConfigDict, name: str, mesh: Mesh, num_images: int
) -> loop.Schedule:
    """How long a training takes; UserError if the mesh cannot share its batches."""
    prefix = f"config.{name}.training"
    parts, size = task_config.microbatches, task_config.batch_size
    if parts < 1 or size % parts:
        raise UserError(f"{prefix}.microbatches={parts} does not divide batch_size={size}")
    sharding.process_batch_size(size // parts, mesh, f"{prefix}.batch_size / microbatches")
    return loop.Schedule.create(task_config, num_images)


@startup.part("data")
def _training_data(config: ConfigDict, schedule: loop.Schedule, mesh: Mesh, seed: int):
    """This process's training batches; closing ends their worker processes."""
    return contextlib.closing(
        pipeline.train_iterator(config.data, seed=seed, **_share(schedule.batch_size, mesh))
    )


def _cached_data(
    config: ConfigDict,
    schedule: loop.Schedule,
    mesh: Mesh,
    tokenizer: Tokenizer,
    variables: Variables,
):
    """This process's training batches from the token cache, in the order of the images."""
    return contextlib.closing(
        token_cache.train_iterator(
            config.token_cache.directory,
            config.data,
            tokenizer.architecture,
            token_cache.fingerprint(sharding.on_host(variables), tokenizer.precision),
            seed=config.seed + 1,
            **_share(schedule.batch_size, mesh),
        )
    )


def _share(batch_size: int, mesh: Mesh) -> dict[str, int]:
    """This process's part of global batches."""
    index, count = sharding.process_share(mesh)
    return {
        "batch_size": batch_size // count,
        "process_index": index,
        "process_count": count,
    }
