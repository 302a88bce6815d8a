"""Caches written record by record, without a tokenizer, and read for training."""

import contextlib
import dataclasses
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ml_collections import ConfigDict

from nvg_jax.data import pipeline, token_cache, token_records
from nvg_jax.data.stream import Order
from nvg_jax.errors import UserError
from tests.data.batches import ORDER, assert_equal, take

META = token_records.Meta(
    dataset="digits",
    split="train",
    image_size=8,
    resize_ratio=1.0,
    num_classes=300,
    architecture="tokenizer(...)",
    fingerprint="0123abcd",
    num_positions=4,
    vocab_size=1000,
    num_images=20,
    num_crops=3,
    seed=0,
    shard_size=16,
)
NAMES = [f"tokens-0000{index}-of-00004.array_record" for index in range(4)]


def _config(meta=META):
    fields = ("dataset", "image_size", "resize_ratio", "num_classes")
    config = {name: getattr(meta, name) for name in fields}
    return ConfigDict(config | {"train_split": meta.split})


def _sequences(numbers):
    """Made up from the numbers of the records, so that a record tells which one it is."""
    numbers = np.asarray(numbers)
    structure = np.stack([np.random.default_rng(number).permutation(4) for number in numbers])
    tokens = (numbers[:, None] * 7 + np.arange(7)) % META.vocab_size
    label = numbers % META.num_images
    return label.astype(np.int32), structure.astype(np.int32), tokens.astype(np.int32)


def _write_shard(directory, name, meta=META):
    with token_cache.shard_writer(directory / name) as writer:
        for record in token_records.encode(meta, *_sequences(meta.shards[name])):
            writer.write(record)


def _write(directory, meta=META):
    token_cache.begin(directory, meta)
    for name in token_cache.missing_shards(directory, meta):
        _write_shard(directory, name, meta)
    return directory


def _times(directory):
    return {path: path.stat().st_mtime_ns for path in directory.iterdir()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("cache"))


def _open(
    directory,
    config=None,
    architecture=META.architecture,
    fingerprint=META.fingerprint,
    **changes,
):
    order = ORDER._replace(**changes)
    return token_cache.train_iterator(
        directory, config or _config(), architecture, fingerprint, order
    )


def _take(directory, count, state=None, **options):
    return take(_open(directory, **options), count, state)


def _numbers(batches):
    """Which records the rows of some batches are."""
    tokens = np.concatenate([batch["tokens"] for batch in batches])
    return tokens[:, 0] // 7


def test_batches_hold_whole_records_in_the_types_of_the_model(cache):
    batches = _take(cache, 10)
    for batch in batches:
        assert {name: (value.dtype, value.shape) for name, value in batch.items()} == {
            "structure": (np.int32, (4, 4)),
            "tokens": (np.int32, (4, 7)),
            "label": (np.int32, (4,)),
            "skipped": (np.int32, (4,)),
        }
        assert not batch["skipped"].any()
    expected = _sequences(_numbers(batches))
    for name, values in zip(("label", "structure", "tokens"), expected, strict=True):
        found = np.concatenate([batch[name] for batch in batches])
        np.testing.assert_array_equal(found, values)


def test_every_image_once_an_epoch_with_ever_other_crops(cache):
    numbers = _numbers(_take(cache, 60 * 5)).reshape(60, 20)
    images = numbers % META.num_images
    np.testing.assert_array_equal(np.sort(images), np.tile(np.arange(20), (60, 1)))
    assert (images[0] != images[1]).any()
    assert set(numbers.flat) == set(range(META.num_records))


def test_a_state_continues_exactly_on_any_number_of_processes(cache):
    with contextlib.closing(_open(cache)) as iterator:
        before = list(itertools.islice(iterator, 3))
        state = json.loads(json.dumps(iterator.get_state()))
        after = list(itertools.islice(iterator, 4))
    assert_equal(before, _take(cache, 3))
    assert_equal(after, _take(cache, 4, state))
    for index in range(2):
        rows = slice(2 * index, 2 * index + 2)
        part = _take(cache, 4, state, batch_size=2, process_index=index, process_count=2)
        assert_equal([{name: x[rows] for name, x in whole.items()} for whole in after], part)


def test_number_of_images(cache, tmp_path):
    assert token_cache.num_images(cache) == 20
    assert token_cache.num_images(tmp_path) is None
    with pytest.raises(UserError, match="no token cache in .*: make one with --job=tokenize"):
        _open(tmp_path)


def test_same_images_as_the_pipeline_with_this_seed(digits_config, tmp_path):
    config = digits_config(image_size=8, resize_ratio=1.0, train_split="train[:20]")
    meta = dataclasses.replace(META, split="train[:20]")
    images = take(pipeline.train_iterator(config, Order(batch_size=5, seed=9)), 8)
    expected = np.concatenate([batch["label"] for batch in images])
    every = next(iter(pipeline.evaluation_batches(config, config.train_split, 20)))["label"]
    batches = _take(_write(tmp_path, meta), 8, config=_config(meta), batch_size=5, seed=9)
    np.testing.assert_array_equal(every[_numbers(batches) % 20], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"fingerprint": "beefbeef"},
            "was made with fingerprint 0123abcd, but this config has fingerprint beefbeef: choose "
            "another --config.token_cache.directory, or remove it",
        ),
        ({"architecture": "tokenizer(x)"}, r"with architecture tokenizer\(\.\.\.\), but .*\(x\)"),
        (
            {"config": _config(dataclasses.replace(META, split="all", num_classes=2))},
            "with split train and num_classes 300, but this config has split all and num_classes 2",
        ),
        ({"batch_size": 21}, "token cache .* has 20 examples, fewer than one batch of 21"),
    ],
)
def test_what_does_not_fit_is_refused(cache, options, message):
    with pytest.raises(UserError, match=message) as error:
        _open(cache, **options)
    assert len(str(error.value).splitlines()) == 1


def test_an_incomplete_cache_is_refused(tmp_path):
    token_cache.begin(tmp_path, META)
    _write_shard(tmp_path, NAMES[0])
    message = "is not complete: 3 of 4 files are missing: run --job=tokenize again"
    with pytest.raises(UserError, match=message):
        _open(tmp_path)


def test_a_shard_appears_when_it_is_whole(tmp_path):
    token_cache.begin(tmp_path, META)
    with pytest.raises(KeyError), token_cache.shard_writer(tmp_path / NAMES[1]) as writer:
        writer.write(b"half")
        raise KeyError
    assert list(token_cache.missing_shards(tmp_path, META)) == NAMES
    assert token_cache.num_images(tmp_path) is None
    _write_shard(tmp_path, NAMES[1])
    assert list(token_cache.missing_shards(tmp_path, META)) == [NAMES[0], *NAMES[2:]]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_noticed(tmp_path, name):
    """A byte of a record changes in one shard; other shards stay readable."""
    path = _write(tmp_path) / name
    content = bytearray(path.read_bytes())
    (_, _, tokens) = _sequences(META.shards[name][:1])
    content[content.index(tokens.astype("<u2").tobytes()[:4])] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} is damaged: remove it and run --job=tokenize"):
        _take(tmp_path, 500)


@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_cut_file_is_noticed(tmp_path, kept):
    path = _write(tmp_path) / NAMES[2]
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=f"{path} is damaged"):
        _open(tmp_path)


def test_a_shard_in_place_of_another_is_noticed(tmp_path):
    """The last one is shorter."""
    _write(tmp_path)
    (tmp_path / NAMES[3]).replace(tmp_path / NAMES[1])
    _write_shard(tmp_path, NAMES[3])
    with pytest.raises(UserError, match=f"{tmp_path / NAMES[1]} is damaged"):
        _take(tmp_path, 1)


def test_beginning_again_changes_nothing(tmp_path):
    _write(tmp_path)
    before = _times(tmp_path)
    token_cache.begin(tmp_path, META)
    assert token_cache.num_images(tmp_path) == META.num_images
    assert before == _times(tmp_path)


def test_several_may_begin_at_once(tmp_path):
    together = threading.Barrier(8)

    def begin(directory):
        together.wait()
        token_cache.begin(directory, META)

    with ThreadPoolExecutor(8) as pool:
        for attempt in range(50):
            directory = tmp_path / str(attempt)
            list(pool.map(begin, [directory] * 8))
            assert [path.name for path in directory.iterdir()] == ["meta.json"]


def test_a_cache_of_something_else_is_left_alone(tmp_path):
    _write(tmp_path)
    before = _times(tmp_path)
    message = "made with num_crops 3 and seed 0, but this config has num_crops 2 and seed 1"
    with pytest.raises(UserError, match=message):
        token_cache.begin(tmp_path, dataclasses.replace(META, num_crops=2, seed=1))
    assert before == _times(tmp_path)


def test_files_without_their_meta_are_left_alone(tmp_path):
    _write(tmp_path)
    (tmp_path / "meta.json").unlink()
    with pytest.raises(UserError, match="holds ArrayRecord files but no meta.json: choose another"):
        token_cache.begin(tmp_path, META)


@pytest.mark.parametrize("content", ["", "[]", '{"dataset": "digits"}', "another version"])
def test_a_meta_that_cannot_be_read(tmp_path, content):
    token_cache.begin(tmp_path, META)
    if content == "another version":
        content = (tmp_path / "meta.json").read_text().replace('version": 1', 'version": 2')
    (tmp_path / "meta.json").write_text(content)
    for read in (
        token_cache.num_images,
        lambda path: _take(path, 1),
        lambda path: token_cache.begin(path, META),
    ):
        with pytest.raises(UserError, match="meta.json is damaged or of another version: remove"):
            read(tmp_path)


def test_places_that_are_no_folder(tmp_path):
    with pytest.raises(UserError, match="gs://bucket/x is no folder of a file system"):
        token_cache.begin("gs://bucket/x", META)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no token cache in"):
        _open(tmp_path / "file")


def test_fingerprint_is_of_the_parameters_and_words_alone():
    variables = {
        "params": {"b": np.arange(3.0, dtype=np.float32), "a": np.ones((2, 2), np.float32)},
        "stats": {"scales": np.ones(3)},
    }
    fingerprint = token_cache.fingerprint(variables, "float32")
    params = {"a": variables["params"]["a"], "b": variables["params"]["b"]}
    assert token_cache.fingerprint({"params": params, "stats": {}}, "float32") == fingerprint
    assert token_cache.fingerprint({"params": params}, "bfloat16") != fingerprint
    params["b"] = np.array([0, 1, np.nextafter(np.float32(2), 3)], np.float32)
    assert token_cache.fingerprint({"params": params}, "float32") != fingerprint
