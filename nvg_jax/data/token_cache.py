"""Granularity sequences of a dataset's crops in ArrayRecord files, read in place of images.

A cache is a directory with

    meta.json                                   what it holds, written first
    tokens-00000-of-00128.array_record, ...     `shard_size` records each, the last one the rest

Record n is crop n of `pipeline.crop_batches`: of N images, the (n // N)-th crop of image n % N. It
is the label, the structure and the tokens, each in the smallest unsigned type that holds it, little
endian: 1,280 bytes for 256 positions, 4,096 codes and 1,000 classes. A shard gets its name when it
is whole, so that what is interrupted leaves no half of one.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import uuid
import zlib
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from jaxtyping import Int
from ml_collections import ConfigDict

from nvg_jax.data.stream import training_stream
from nvg_jax.errors import UserError

_FORMAT_VERSION = 1
_ANOTHER = "choose another --config.token_cache.directory"


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a cache holds; its `meta.json`.

    dataset, split, image_size, resize_ratio, num_classes: as in `config.data`.
    architecture, fingerprint: of the tokenizer, which has `num_positions` and `vocab_size`.
    num_crops: of each of `num_images`, drawn with `seed`.
    shard_size: records per file.
    """

    dataset: str
    split: str
    image_size: int
    resize_ratio: float
    num_classes: int
    architecture: str
    fingerprint: str
    num_positions: int
    vocab_size: int
    num_images: int
    num_crops: int
    seed: int
    shard_size: int
    format_version: int = _FORMAT_VERSION

    @property
    def num_records(self) -> int:
        return self.num_images * self.num_crops

    @property
    def num_shards(self) -> int:
        return math.ceil(self.num_records / self.shard_size)

    def shard(self, index: int) -> range:
        """The numbers of a shard's records."""
        start = index * self.shard_size
        return range(start, min(start + self.shard_size, self.num_records))

    def shard_path(self, directory: epath.PathLike, index: int) -> epath.Path:
        name = f"tokens-{index:05}-of-{self.num_shards:05}.array_record"
        return epath.Path(directory) / name

    @functools.cached_property
    def record_type(self) -> np.dtype:
        """A record, as NumPy's packed structure."""

        def smallest(count: int) -> np.dtype:
            return np.min_scalar_type(count - 1).newbyteorder("<")

        length = self.num_positions
        return np.dtype(
            [
                ("label", smallest(self.num_classes)),
                ("structure", smallest(length), length),
                ("tokens", smallest(self.vocab_size), 2 * length - 1),
            ]
        )


def data_fields(config: ConfigDict) -> dict[str, Any]:
    """The fields of `Meta` that stand in `config.data`."""
    names = ("dataset", "image_size", "resize_ratio", "num_classes")
    return {"split": config.train_split} | {name: config[name] for name in names}


def encode(
    meta: Meta,
    label: Int[np.ndarray, "B"],
    structure: Int[np.ndarray, "B L"],
    tokens: Int[np.ndarray, "B M"],
) -> list[bytes]:
    """The records of a batch."""
    rows = np.empty(len(label), meta.record_type)
    rows["label"], rows["structure"], rows["tokens"] = label, structure, tokens
    return [row.tobytes() for row in rows]


def decode(meta: Meta, record: bytes) -> dict[str, np.ndarray | np.integer]:
    """Structure [L], tokens [2L-1] and label [] of a record, in the types in which they are kept.

    Raises ValueError for bytes of another length.
    """
    (row,) = np.frombuffer(record, meta.record_type)
    return {name: row[name] for name in meta.record_type.names}


def fingerprint(variables: Any) -> str:
    """CRC-32 over a tokenizer's parameters, in hex; canvas scales change no token and are none."""
    checksum = 0
    for parameter in jax.tree.leaves(variables["params"]):
        checksum = zlib.crc32(np.asarray(parameter).tobytes(), checksum)
    return f"{checksum:08x}"


def begin(directory: epath.PathLike, meta: Meta) -> None:
    """Makes a directory the cache that `meta` describes, unless it already is.

    Raises:
      UserError: it holds a cache of something else, or one without its `meta.json`, or it cannot
        be written.
    """
    if "://" in os.fspath(directory):
        raise UserError(f"{directory} is no folder of a file system: {_ANOTHER} that is one")
    directory = epath.Path(directory)
    shards = list(directory.glob("*.array_record"))  # Before meta.json, which is written first.
    if (directory / "meta.json").exists():
        _refuse_other(directory, _read_meta(directory), dataclasses.asdict(meta))
        return
    if shards:
        raise UserError(f"{directory} holds ArrayRecord files but no meta.json: {_ANOTHER}")
    # Several processes may begin at once; they write the same.
    part = directory / f"meta.json.{uuid.uuid4().hex}.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(dataclasses.asdict(meta), indent=1) + "\n")
        part.replace(directory / "meta.json")
    except OSError as error:
        raise UserError(
            f"{directory} cannot be written ({error.strerror}): make room, or {_ANOTHER}"
        ) from error


def missing_shards(directory: epath.PathLike, meta: Meta) -> list[int]:
    """The shards that are still to be written."""
    written = {path.name for path in epath.Path(directory).glob("*.array_record")}
    return [
        index
        for index in range(meta.num_shards)
        if meta.shard_path(directory, index).name not in written
    ]


def is_complete(directory: epath.PathLike) -> bool:
    """Whether there is a cache that lacks nothing. UserError if its `meta.json` is damaged."""
    directory = epath.Path(directory)
    return (directory / "meta.json").exists() and not missing_shards(
        directory, _read_meta(directory)
    )


def num_bytes(directory: epath.PathLike, meta: Meta) -> int:
    """The size of all shards, none of which may be missing."""
    paths = (meta.shard_path(directory, index) for index in range(meta.num_shards))
    return sum(path.stat().length for path in paths)


@contextlib.contextmanager
def shard_writer(directory: epath.PathLike, meta: Meta, index: int) -> Iterator[ArrayRecordWriter]:
    """Writes a shard, which appears under its name on leaving, unless with an exception.

    Raises UserError on leaving if it cannot be written, as on a full disk.
    """
    path = meta.shard_path(directory, index)
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


def num_images(directory: epath.PathLike) -> int:
    """How many images a cache holds: the examples of an epoch. UserError if there is no cache."""
    return _read_meta(epath.Path(directory)).num_images


def train_iterator(
    directory: epath.PathLike,
    config: ConfigDict,
    architecture: str,
    fingerprint: str,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Endless shuffled training batches of this process, as `pipeline.train_iterator`'s.

    An epoch holds every image once, with one of its crops drawn at random. With the same seed the
    images come in the order in which `pipeline.train_iterator` gives them.

    Args:
      directory: of the cache.
      config: `config.data`; the dataset itself need not be there.
      architecture: the tokenizer's.
      fingerprint: the tokenizer's, as `fingerprint` gives it.
      batch_size: images per batch of this process.
      seed: of order and crops, in [0, 2^32).
      process_index: this process, of `process_count` that each read their share.
      process_count: number of processes.

    Returns:
      Iterator over {'structure': int32 [B, L], 'tokens': int32 [B, 2L-1], 'label': int32 [B],
      'skipped': int32 [B], zeros}.

    Raises:
      UserError: there is no cache, or it is of other data or another tokenizer, incomplete or
        smaller than one batch of all processes; while iterating, a record is damaged.
    """
    directory = epath.Path(directory)
    wanted = data_fields(config) | {"architecture": architecture, "fingerprint": fingerprint}
    meta = _read_meta(directory)
    _refuse_other(directory, meta, wanted)
    records = _open(directory, meta)

    def example(image: int, rng: np.random.Generator) -> dict:
        number = int(rng.integers(meta.num_crops)) * meta.num_images + image
        try:
            return decode(meta, records[number])
        except (RuntimeError, ValueError) as error:
            path = meta.shard_path(directory, number // meta.shard_size)
            raise _damaged(path) from error

    return training_stream(
        f"the token cache {directory}",
        meta.num_images,
        example,
        _to_model_types,
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )


def _read_meta(directory: epath.Path) -> Meta:
    path = directory / "meta.json"
    try:
        meta = Meta(**json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no token cache in {directory}: make one with --job=tokenize") from None
    except (ValueError, TypeError):
        meta = None
    if meta is None or meta.format_version != _FORMAT_VERSION:
        raise UserError(
            f"{path} is damaged or of another version: remove {directory} and run --job=tokenize "
            "again"
        )
    return meta


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
            f"the token cache {directory} is not complete: {len(missing)} of {meta.num_shards} "
            "files are missing: run --job=tokenize again"
        )
    paths = [meta.shard_path(directory, index) for index in range(meta.num_shards)]
    for index, path in enumerate(paths):
        try:
            count = len(ArrayRecordDataSource(os.fspath(path)))
        except RuntimeError as error:
            raise _damaged(path) from error
        if count != len(meta.shard(index)):
            raise _damaged(path)
    return ArrayRecordDataSource([os.fspath(path) for path in paths])


def _damaged(path: epath.Path) -> UserError:
    return UserError(f"{path} is damaged: remove it and run --job=tokenize again")


def _to_model_types(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    batch = {name: value.astype(np.int32) for name, value in batch.items()}
    return batch | {"skipped": np.zeros_like(batch["label"])}
