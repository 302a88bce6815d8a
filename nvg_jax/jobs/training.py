"""The job `train`: the tokenizer, the generator, and a picture of its samples."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvg_jax import files, keys, lock, sharding, startup
from nvg_jax.data import pipeline, token_cache
from nvg_jax.data.stream import Order
from nvg_jax.distributed import agreed
from nvg_jax.errors import UserError
from nvg_jax.jobs.generation import (
    find_samples,
    requested_classes,
    sampling_settings,
    write_samples,
)
from nvg_jax.jobs.job import job
from nvg_jax.jobs.method import METHODS
from nvg_jax.jobs.model import (
    Variables,
    frozen_network,
    given_weights,
    initial_generator,
    load_tokenizer,
    save_config,
)
from nvg_jax.jobs.tokenization import cache_directory, refuse_repa_with, tokenize
from nvg_jax.progress import track
from nvg_jax.tokenizer.model import Tokenizer
from nvg_jax.tokenizer.training import TokenizerTask, with_canvas_scales
from nvg_jax.training import loop
from nvg_jax.training.state import TrainState

log = logging.getLogger(__name__)


@job
def train(config: ConfigDict, workdir: str) -> None:
    """Brings the workdir from wherever it is to a trained model and a picture of its samples.

    Two trainings do not share a workdir: the second is refused. A finished one changes nothing.

    Trains the tokenizer, unless the config names one, then the generator, each from its last
    checkpoint. With a `tokenization.cache_directory` the images are tokenized in between, unless
    that is done.
    """
    mesh = sharding.create_mesh(config.mesh)
    method = METHODS[config.method]
    tokenizer, generator = method.build_tokenizer(config), method.build_generator(config)
    training = config.generator.training
    cache = cache_directory(config, workdir)
    refuse_repa_with(cache, config)
    cached_images = token_cache.num_images(cache) if cache else None
    num_images = cached_images or _num_images(config)
    schedule = checked_schedule(config, "generator", mesh, num_images)
    # What the samples at the end need is checked before hours of training.
    requested_classes(config, config.sampling.num_samples)
    settings = sampling_settings(config)
    sharding.process_batch_size(config.sampling.batch_size, mesh, "config.sampling.batch_size")
    initial = initial_generator(config, generator)
    dinov2 = frozen_network(config, "dinov2") if training.repa.weight else None
    if cache and not cached_images:
        files.usable_workdir(cache)
    with lock.locked(workdir, "train"):
        with loop.stop_signal() as stop:
            run = _Run(config, workdir, mesh, stop)
            if given_weights(config, "tokenizer"):
                variables = load_tokenizer(config, workdir, tokenizer)
            else:
                variables = _train_tokenizer(run, tokenizer)
            if cache:
                # No process may begin the cache while another has still to look for it.
                multihost_utils.sync_global_devices("looked for a token cache")
                if not cached_images:
                    tokenize(config, workdir, stop)
            task = method.task(
                generator,
                tokenizer,
                variables,
                training,
                schedule,
                settings,
                dinov2,
            )
            if cache:
                data = _cached_data(run, cache, schedule, tokenizer, variables)
            else:
                data = _images(run, schedule, "generator")
            state = run.train(task, schedule, data, initial=initial)
        trained = config.copy_and_resolve_references()
        trained.tokenizer.checkpoint = given_weights(config, "tokenizer")
        # Training began with these, and has made others.
        trained.generator.checkpoint = trained.pretrained = ""
        _draw_samples(trained, workdir, int(state.step))


def _draw_samples(config: ConfigDict, workdir: str, step: int) -> None:
    """Makes samples of the trained model, unless this was done after the same step before."""
    found = ""
    if jax.process_index() == 0:
        found = find_samples(workdir, job="train", generator=f"step {step}") or ""
    if found := agreed(str(found)):
        log.info("all is there: both are trained, and samples are in %s", found)
    else:
        write_samples(config, workdir, "train")


class _Run:
    """What both trainings of a run share."""

    def __init__(self, config: ConfigDict, workdir: str, mesh: Mesh, stop: Callable[[], bool]):
        self.config, self.workdir, self.mesh, self.stop = config, workdir, mesh, stop

    def train(self, task: loop.Task, schedule: loop.Schedule, data: Any, **options: Any):
        """As `loop.train`, in the task's part of the workdir; ends the workers of the data."""
        with contextlib.closing(data):
            return loop.train(
                task,
                self.config[task.name].training,
                schedule,
                data,
                f"{self.workdir}/{task.name}",
                self.mesh,
                keys.named(self.config.seed, task.name),
                stop=self.stop,
                begin=lambda: save_config(self.config, self.workdir),
                **options,
            )

    def order(self, schedule: loop.Schedule, purpose: str) -> Order:
        """This process's part of global batches, in an order of the purpose's own."""
        index, count = sharding.process_share(self.mesh)
        seed = keys.integer(self.config.seed, purpose, "data")
        return Order(schedule.batch_size // count, seed, index, count)


def _train_tokenizer(run: _Run, tokenizer: Tokenizer) -> Variables:
    config = run.config
    training = config.tokenizer.training
    schedule = checked_schedule(config, "tokenizer", run.mesh, _num_images(config))
    task = TokenizerTask(
        tokenizer,
        training,
        schedule,
        frozen_network(config, "lpips") if training.lpips_weight else None,
        frozen_network(config, "dino") if training.adversarial_weight else None,
    )

    def finish(state: TrainState) -> TrainState:
        """Measures the canvases' scales with the averaged weights, on training crops."""
        count = config.tokenizer.scale_batches
        with contextlib.closing(_images(run, schedule, "canvas scales")) as data:
            batches = track(itertools.islice(data, count), "canvas scales", count, "batch")
            images = (sharding.place_batch(batch, run.mesh)["image"] for batch in batches)
            return state.replace(ema=with_canvas_scales(tokenizer, state.ema, images))

    return run.train(task, schedule, _images(run, schedule, "tokenizer"), finish=finish).ema


def _num_images(config: ConfigDict) -> int:
    return pipeline.num_examples(config.data, config.data.train_split)


def checked_schedule(config: ConfigDict, name: str, mesh: Mesh, num_images: int) -> loop.Schedule:
    """How long a training takes; UserError if the mesh cannot share its batches."""
    prefix, training = f"config.{name}.training", config[name].training
    parts, size = training.microbatches, training.batch_size
    if size % parts:
        raise UserError(f"{prefix}.microbatches={parts} does not divide batch_size={size}")
    size, divided = size // parts, f"{prefix}.batch_size / microbatches"
    stride = training.get("stage_stride", 1)  # A tokenizer's training has none.
    if size % stride:
        raise UserError(f"{prefix}.stage_stride={stride} does not divide {size}, {divided}")
    sharding.process_batch_size(size // stride, mesh, divided + " / stage_stride" * (stride > 1))
    return loop.Schedule.create(training, num_images)


def _images(run: _Run, schedule: loop.Schedule, purpose: str):
    """This process's batches of random training crops, in an order of the purpose's own."""
    with startup.part("data"):
        return pipeline.train_iterator(run.config.data, run.order(schedule, purpose))


def _cached_data(
    run: _Run, cache: str, schedule: loop.Schedule, tokenizer: Tokenizer, variables: Variables
):
    """This process's batches from the token cache, in the order of the generator's images."""
    return token_cache.train_iterator(
        cache,
        run.config.data,
        tokenizer.architecture,
        token_cache.fingerprint(sharding.on_host(variables), tokenizer.arithmetic.exactness),
        run.order(schedule, "generator"),
    )
