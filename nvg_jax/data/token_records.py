"""What a token cache holds, and the bytes of its records.

Record n is crop n of `pipeline.crop_batches`: of N images, the (n // N)-th crop of image n % N. It
is the label, the structure and the tokens, each in the smallest unsigned type that holds it, little
endian: 1,280 bytes for 256 positions, 4,096 codes and 1,000 classes.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a cache holds; its `meta.json`.

    dataset, split, image_size, resize_ratio, num_classes: as in `config.data`.
    architecture, fingerprint: of the tokenizer, which has `num_positions` and `vocab_size`.
    num_crops: of each of `num_images`, drawn with `seed`.
    num_tokens: of each; where it is missing, those of all stages.
    shard_size: records per file. Raises ValueError for another version than this one.
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
    format_version: int = 1
    num_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.num_tokens is None:
            object.__setattr__(self, "num_tokens", 2 * self.num_positions - 1)
        if self.format_version != 1:
            raise ValueError(f"format version {self.format_version}")

    @property
    def num_records(self) -> int:
        return self.num_images * self.num_crops

    @property
    def shards(self) -> dict[str, range]:
        """The numbers of the records in each file, by its name."""
        numbers, size = range(self.num_records), self.shard_size
        shards = [numbers[start : start + size] for start in numbers[::size]]
        name = f"tokens-{{:05}}-of-{len(shards):05}.array_record"
        return {name.format(index): shard for index, shard in enumerate(shards)}

    @functools.cached_property
    def record_type(self) -> np.dtype:
        """A record, as NumPy's packed structure."""

        def smallest(count: int) -> np.dtype:
            return np.min_scalar_type(count - 1).newbyteorder("<")

        length, label = self.num_positions, ("label", smallest(self.num_classes))
        structure = ("structure", smallest(length), length)
        return np.dtype([label, structure, ("tokens", smallest(self.vocab_size), self.num_tokens)])


def data_fields(config: ConfigDict) -> dict[str, Any]:
    """The fields of `Meta` that stand in `config.data`."""
    names = ("dataset", "image_size", "resize_ratio", "num_classes")
    return {"split": config.train_split} | {name: config[name] for name in names}


def encode(
    meta: Meta,
    label: Int[np.ndarray, "B"],
    structure: Int[np.ndarray, "B L"],
    tokens: Int[np.ndarray, "B heap"],
) -> list[bytes]:
    """The records of a batch."""
    rows = np.empty(len(label), meta.record_type)
    rows["label"], rows["structure"], rows["tokens"] = label, structure, tokens
    return [row.tobytes() for row in rows]


def decode(meta: Meta, record: bytes) -> dict[str, np.ndarray | np.integer]:
    """Structure [L], tokens [heap] and label [] of a record, in the types in which they are kept.

    Raises ValueError for bytes of another length.
    """
    (row,) = np.frombuffer(record, meta.record_type)
    return {name: row[name] for name in meta.record_type.names}
