"""The job `tokenize`: the crops of a dataset become granularity sequences in a token cache."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvg_jax import files, granularity, keys, lock, pixels, sharding
from nvg_jax.data import pipeline, token_cache, token_records
from nvg_jax.data.stream import Batch, Order
from nvg_jax.errors import Preempted, UserError
from nvg_jax.granularity import GranularitySequence
from nvg_jax.jobs.job import reading_job
from nvg_jax.jobs.model import load_tokenizer
from nvg_jax.progress import Progress
from nvg_jax.tokenizer import inference
from nvg_jax.tokenizer.model import Tokenizer, build_tokenizer

log = logging.getLogger(__name__)
Sequences = Iterator[tuple[Batch, GranularitySequence]]


def cache_directory(config: ConfigDict, workdir: str) -> str:
    """Where a training finds tokens in place of images; '' if it tokenizes images on the fly.

    That is `config.token_cache.directory`. Where it is empty, a cache in the workdir saves work if
    images come again, all crops of an image are the same and nothing else needs the images.
    Baselines have none.
    """
    if config.token_cache.directory:
        return config.token_cache.directory
    training = config.generator.training
    needs_images = training.repa.weight or config.method != "nvg"
    if needs_images or training.epochs <= 1 or files.is_remote(workdir):
        return ""
    return _in(workdir) if pipeline.has_one_crop(config.data) else ""


def refuse_repa_with(cache: str, config: ConfigDict) -> None:
    """UserError if a training is to find tokens in a cache and to align them with images."""
    if cache and config.generator.training.repa.weight:
        raise UserError(
            "REPA needs images, which a token cache does not hold: set "
            "--config.generator.training.repa.weight=0, or leave config.token_cache.directory empty"
        )


def _in(workdir: str) -> str:
    return f"{workdir}/token_cache"


@reading_job
def tokenize(config: ConfigDict, workdir: str, stop: Callable[[], bool] = lambda: False) -> None:
    """Writes `config.token_cache.num_crops` sequences of every training image as a token cache; one
    if all its crops are the same.

    It stands in `config.token_cache.directory`, or else in `token_cache/` of the workdir; several
    processes need the same file system there. What an interrupted job has finished is kept.

    Every process makes files of its own with its own devices, `config.token_cache.batch_size` crops
    at a time, so that nobody waits for anybody and a file does not depend on who makes it.

    stop: whether to leave between two batches, with `Preempted`. UserError: the directory holds
    another cache, or there is no tokenizer or no dataset.
    """
    settings = config.token_cache
    mesh = sharding.create_mesh(devices=jax.local_devices())
    sharding.process_batch_size(settings.batch_size, mesh, "config.token_cache.batch_size")
    tokenizer = build_tokenizer(config)
    variables = sharding.on_host(load_tokenizer(config, workdir, tokenizer))
    directory = epath.Path(settings.directory or _in(workdir))
    meta = token_records.Meta(
        **token_records.data_fields(config.data),
        architecture=tokenizer.architecture,
        fingerprint=token_cache.fingerprint(variables, tokenizer.arithmetic.exactness),
        num_positions=tokenizer.num_positions,
        num_tokens=granularity.num_tokens(tokenizer.stages),
        vocab_size=tokenizer.vocab_size,
        num_images=pipeline.num_examples(config.data, config.data.train_split),
        num_crops=1 if pipeline.has_one_crop(config.data) else settings.num_crops,
        seed=keys.integer(config.seed, "token cache"),
        shard_size=settings.shard_size,
    )
    token_cache.begin(directory, meta)
    with lock.locked(directory, "tokenize"):
        _write_missing(config, directory, meta, tokenizer, variables, mesh, stop)
    if jax.process_index() == 0:
        is_found = not settings.directory and cache_directory(config, workdir)
        hint = "" if is_found else f": train with --config.token_cache.directory={directory}"
        log.info(
            f"{meta.num_records} sequences of {meta.num_images} images are in {directory}, "
            f"{meta.record_type.itemsize} bytes each{hint}"
        )


def _write_missing(
    config: ConfigDict,
    directory: epath.Path,
    meta: token_records.Meta,
    tokenizer: Tokenizer,
    variables: Any,
    mesh: Mesh,
    stop: Callable[[], bool],
) -> None:
    """Writes this process's share of the files that are not there, and waits for the others."""
    share = list(meta.shards)[jax.process_index() :: jax.process_count()]
    missing = token_cache.missing_shards(directory, meta)
    missing = {directory / name: missing[name] for name in share if name in missing}
    if missing:
        files.usable_workdir(directory)
        order = Order(config.token_cache.batch_size, meta.seed)
        starts = [start for numbers in missing.values() for start in numbers[:: order.batch_size]]
        crops = pipeline.crop_batches(config.data, config.data.train_split, starts, order)
        with jax.set_mesh(mesh), contextlib.closing(crops):
            sequences = _sequences(tokenizer, variables, crops, mesh)
            _write(missing, meta, order.batch_size, sequences, stop)
    multihost_utils.sync_global_devices("token cache written")


def _write(
    shards: dict[epath.Path, range],
    meta: token_records.Meta,
    size: int,
    sequences: Sequences,
    stop: Callable[[], bool],
) -> None:
    """Writes files of these records, which come in batches of `size` that begin with each file."""
    skipped = 0
    total = sum(map(len, shards.values()))
    with Progress("tokens", total) as progress:
        for path, numbers in shards.items():
            with token_cache.shard_writer(path) as writer:
                for start in numbers[::size]:
                    # The last batch reaches beyond the shard, for one shape to compile.
                    real = slice(min(size, numbers.stop - start))
                    batch, sequence = next(sequences)
                    structure, tokens = (np.asarray(x)[real] for x in sequence)
                    records = token_records.encode(meta, batch["label"][real], structure, tokens)
                    for record in records:
                        writer.write(record)
                    skipped += int(batch["skipped"][real].sum())
                    progress.update(len(records))
                    if stop():
                        raise Preempted(
                            f"stopped by SIGTERM: what {path.parent} holds is kept; run the same "
                            "command again to go on"
                        )
    if skipped:
        log.warning("%d crops are of images in place of those that cannot be decoded", skipped)


def _sequences(
    tokenizer: Tokenizer, variables: Any, crops: Iterable[Batch], mesh: Mesh
) -> Sequences:
    """Each batch with its sequences; the devices are at the next one while the host writes."""
    variables = jax.device_put(variables, sharding.replicated(mesh))

    def dispatched() -> Sequences:
        for batch in crops:
            images = jax.device_put(batch["image"], sharding.batch_sharding(mesh))
            images = pixels.from_uint8(images)
            yield batch, inference.sequences_of(tokenizer, variables, images)

    return sharding.one_ahead(dispatched())
