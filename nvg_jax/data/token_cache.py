"""Granularity sequences of a dataset's crops in ArrayRecord files, read in place of images.

A cache is a directory with

    meta.json                                   what it holds, written first
    tokens-00000-of-00128.array_record, ...     `shard_size` records each, the last one the rest

The records are those of `token_records`. A file gets its name when it is whole, so that what is
interrupted leaves no half of one.
"""

import contextlib
import dataclasses
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from ml_collections import ConfigDict

from nvg_jax import files
from nvg_jax.data.stream import Batches, Order, training_stream
from nvg_jax.data.token_records import Meta, data_fields, decode
from nvg_jax.errors import UserError

_ANOTHER = "choose another --config.token_cache.directory"


def fingerprint(variables: Any, *words: str) -> str:
    """CRC-32 in hex over a model's parameters and over words, as a tokenizer's precision.

    What is no parameter is left out: a tokenizer's canvas scales change no token.
    """
    checksum = 0
    for parameter in jax.tree.leaves(variables["params"]):
        checksum = zlib.crc32(np.asarray(parameter).tobytes(), checksum)
    return f"{zlib.crc32(''.join(words).encode(), checksum):08x}"


def begin(directory: epath.PathLike, meta: Meta) -> None:
    """Makes a directory the cache that `meta` describes, unless it already is.

    UserError: it holds a cache of something else, or one without its `meta.json`, or it cannot be
    written.
    """
    if files.is_remote(directory):
        raise UserError(f"{directory} is no folder of a file system: {_ANOTHER} that is one")
    directory = epath.Path(directory)
    shards = list(directory.glob("*.array_record"))  # Before meta.json, which is written first.
    if (directory / "meta.json").exists():
        _refuse_other(directory, _read_meta(directory), dataclasses.asdict(meta))
        return
    if shards:
        raise UserError(f"{directory} holds ArrayRecord files but no meta.json: {_ANOTHER}")
    # Several processes may begin at once; they write the same.
    text = json.dumps(dataclasses.asdict(meta), indent=1)
    files.write_text(directory / "meta.json", f"{text}\n")


def missing_shards(directory: epath.PathLike, meta: Meta) -> dict[str, range]:
    """Those of `meta.shards` that are still to be written."""
    written = {path.name for path in epath.Path(directory).glob("*.array_record")}
    return {name: numbers for name, numbers in meta.shards.items() if name not in written}


def num_images(directory: epath.PathLike) -> int | None:
    """The images of a cache, which are the examples of an epoch; None if it lacks anything.

    UserError if its `meta.json` is damaged.
    """
    if not (epath.Path(directory) / "meta.json").exists():
        return None
    meta = _read_meta(epath.Path(directory))
    return None if missing_shards(directory, meta) else meta.num_images


@contextlib.contextmanager
def shard_writer(path: epath.PathLike) -> Iterator[ArrayRecordWriter]:
    """Writes a file, which appears under its name on leaving, unless with an exception.

    Raises UserError on leaving if it cannot be written, as on a full disk.
    """
    path = epath.Path(path)
    part = path.with_name(f"{path.name}.part")
    # One record a group: they are read one at a time, in random order.
    writer = ArrayRecordWriter(os.fspath(part), "group_size:1")
    is_whole = False
    try:
        yield writer
        is_whole = True
    finally:
        try:
            writer.close()
            if is_whole:
                part.replace(path)
        except (OSError, RuntimeError) as error:  # The writer's own errors are RuntimeErrors.
            part.unlink(missing_ok=True)
            raise UserError(
                f"{path} cannot be written ({str(error).split(';')[0]}): make room, and run the "
                "same command again; the files that are there are kept"
            ) from error


def train_iterator(
    directory: epath.PathLike, config: ConfigDict, architecture: str, fingerprint: str, order: Order
) -> Batches:
    """Training batches of this process, as a `training_stream` of {'structure': int32 [B, L],
    'tokens': int32 [B, heap], 'label': int32 [B], 'skipped': int32 [B], zeros}.

    An epoch holds every image once, with one of its crops drawn at random. With the same seed the
    images come in the order in which `pipeline.train_iterator` gives them. The dataset that
    `config`, which is `config.data`, names need not be there; `architecture` and `fingerprint`,
    with its precision, are the tokenizer's.

    UserError: there is no cache, or it is of other data or another tokenizer, incomplete or smaller
    than one batch of all processes; while iterating, a record is damaged.
    """
    directory = epath.Path(directory)
    wanted = data_fields(config) | {"architecture": architecture, "fingerprint": fingerprint}
    meta = _read_meta(directory)
    _refuse_other(directory, meta, wanted)
    paths = [directory / name for name in meta.shards]
    records = _open(directory, meta)

    def example(image: int, rng: np.random.Generator) -> dict:
        number = int(rng.integers(meta.num_crops)) * meta.num_images + image
        try:
            return decode(meta, records[number])
        except (RuntimeError, ValueError) as error:
            raise _damaged(paths[number // meta.shard_size]) from error

    name = f"the token cache {directory}"
    return training_stream(name, meta.num_images, example, _to_model_types, order)


def _read_meta(directory: epath.Path) -> Meta:
    path = directory / "meta.json"
    try:
        return Meta(**json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no token cache in {directory}: make one with --job=tokenize") from None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged or of another version: remove {directory} and run --job=tokenize "
            "again"
        ) from error


def _refuse_other(directory: epath.Path, found: Meta, wanted: dict[str, Any]) -> None:
    """Raises UserError, which names what is not as wanted."""
    there = dataclasses.asdict(found)
    differing = [name for name, value in wanted.items() if value != there[name]]
    if differing:
        shown = (
            " and ".join(f"{name} {values[name]}" for name in differing)
            for values in (there, wanted)
        )
        raise UserError(
            "the token cache {} was made with {}, but this config has {}: "
            "{}, or remove it and run --job=tokenize again".format(directory, *shown, _ANOTHER)
        )


def _open(directory: epath.Path, meta: Meta) -> ArrayRecordDataSource:
    missing = missing_shards(directory, meta)
    if missing:
        raise UserError(
            f"the token cache {directory} is not complete: {len(missing)} of {len(meta.shards)} "
            "files are missing: run --job=tokenize again"
        )
    for name, numbers in meta.shards.items():
        try:
            is_whole = len(ArrayRecordDataSource(os.fspath(directory / name))) == len(numbers)
        except RuntimeError:
            is_whole = False
        if not is_whole:
            raise _damaged(directory / name)
    return ArrayRecordDataSource([os.fspath(directory / name) for name in meta.shards])


def _damaged(path: epath.Path) -> UserError:
    return UserError(f"{path} is damaged: remove it and run --job=tokenize again")


def _to_model_types(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    batch = {name: value.astype(np.int32) for name, value in batch.items()}
    return batch | {"skipped": np.zeros_like(batch["label"])}
