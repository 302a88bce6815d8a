"""The bytes of records."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nvg_jax.data import token_records


def _meta(**changes):
    numbers = {"image_size": 8, "num_images": 20, "num_crops": 3, "seed": 0, "shard_size": 16}
    words = {"dataset": "digits", "split": "train", "architecture": "x", "fingerprint": "0123abcd"}
    return token_records.Meta(resize_ratio=1.0, **numbers, **words, **changes)


@st.composite
def _stored(draw):
    """Any sizes, and any sequences of these sizes."""
    last_stage = draw(st.integers(1, 9))
    meta = _meta(
        num_positions=2**last_stage,
        vocab_size=draw(st.sampled_from([2, 256, 257, 4096, 2**16, 2**16 + 1])),
        num_classes=draw(st.sampled_from([1, 256, 257, 1000])),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, length = draw(st.integers(1, 3)), meta.num_positions
    structure = rng.permuted(np.tile(np.arange(length, dtype=np.int32), (count, 1)), axis=1)
    tokens = rng.integers(meta.vocab_size, size=(count, 2 * length - 1), dtype=np.int32)
    tokens[0, 0], tokens[-1, -1] = 0, meta.vocab_size - 1
    label = rng.integers(meta.num_classes, size=count, dtype=np.int32)
    label[0] = meta.num_classes - 1
    return meta, label, structure, tokens


@given(_stored())
def test_records_give_back_what_was_stored(stored):
    meta, *arrays = stored
    decoded = [token_records.decode(meta, record) for record in token_records.encode(meta, *arrays)]
    for name, array in zip(("label", "structure", "tokens"), arrays, strict=True):
        np.testing.assert_array_equal([record[name] for record in decoded], array)


def test_records_are_small_and_little_endian():
    meta = _meta(num_positions=256, vocab_size=4096, num_classes=1000)
    label = np.array([0x0203], np.int32)
    structure = np.arange(256, dtype=np.int32)[None]
    tokens = np.full((1, 511), 0x0A0B, np.int32)
    (record,) = token_records.encode(meta, label, structure, tokens)
    assert record == b"\x03\x02" + bytes(range(256)) + b"\x0b\x0a" * 511


def test_files_share_the_records_in_their_order():
    meta = _meta(num_positions=4, vocab_size=1000, num_classes=300)
    assert meta.shards == {
        "tokens-00000-of-00004.array_record": range(16),
        "tokens-00001-of-00004.array_record": range(16, 32),
        "tokens-00002-of-00004.array_record": range(32, 48),
        "tokens-00003-of-00004.array_record": range(48, 60),
    }
