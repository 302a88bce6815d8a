"""The job `tokenize` on real digits, with a tiny tokenizer of random weights."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from ml_collections import ConfigDict

from nvg_jax import jobs, keys, pixels, sharding
from nvg_jax.data import pipeline, token_cache, token_records
from nvg_jax.data.stream import Order
from nvg_jax.errors import UserError
from nvg_jax.tokenizer import inference
from nvg_jax.tokenizer.model import build_tokenizer
from nvg_jax.weights import save_weights

NUM_IMAGES, NUM_CROPS = 90, 2


@pytest.fixture(scope="session")
def weights_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture
def config(tiny_config, random_variables, weights_dir):
    """Crops of 8 x 8 from digits of 10 x 10, whose places differ."""
    config = tiny_config
    config.data.train_split = f"train[:{NUM_IMAGES}]"
    config.data.resize_ratio = 1.25
    config.token_cache = ConfigDict(
        {"directory": "", "num_crops": NUM_CROPS, "batch_size": 16, "shard_size": 50}
    )
    config.tokenizer.checkpoint = str(weights_dir / "0")
    if not (weights_dir / "0").exists():
        _save_weights(config, random_variables, 1.0)
    return config


def _save_weights(config, random_variables, factor):
    tokenizer = build_tokenizer(config)
    variables = random_variables(tokenizer.init_variables)
    variables["params"] = jax.tree.map(lambda x: factor * x, variables["params"])
    save_weights(config.tokenizer.checkpoint, variables, tokenizer.architecture)


@pytest.fixture
def loaded(config):
    """The tokenizer, its variables, and what a cache's meta says of them."""
    tokenizer = build_tokenizer(config)
    variables = jobs.model.load_tokenizer(config, "unused", tokenizer)
    fingerprint = token_cache.fingerprint(
        sharding.on_host(variables), tokenizer.arithmetic.exactness
    )
    return tokenizer, variables, fingerprint


def _shards(directory):
    return sorted(directory.glob("*.array_record"))


def _times(directory):
    return {path: path.stat().st_mtime_ns for path in directory.iterdir()}


def _records(directory):
    """Label, structure and tokens of all records, in their order."""
    source = ArrayRecordDataSource([str(path) for path in _shards(directory)])
    meta = token_records.Meta(**json.loads((directory / "meta.json").read_text()))
    decoded = [token_records.decode(meta, source[index]) for index in range(len(source))]
    return {name: np.stack([record[name] for record in decoded]) for name in decoded[0]}


def _assert_same(directory, other):
    jax.tree.map(np.testing.assert_array_equal, _records(directory), _records(other))
    assert not list(directory.glob("*.part"))


@pytest.fixture
def cache(config, tmp_path_factory):
    """The cache of `config`, made once."""
    workdir = tmp_path_factory.getbasetemp() / "tokenized"
    if not workdir.exists():
        jobs.tokenize(config, str(workdir))
    return workdir / "token_cache"


def test_sequences_are_those_of_the_same_crops(config, loaded, cache):
    tokenizer, variables, _ = loaded
    records = _records(cache)
    count = NUM_IMAGES * NUM_CROPS
    assert len(records["label"]) == count
    seed = keys.integer(config.seed, "token cache")
    starts = range(0, count, 45)
    crops = pipeline.crop_batches(config.data, config.data.train_split, starts, Order(45, seed))
    with contextlib.closing(crops):
        for start, batch in zip(starts, crops, strict=True):
            rows = slice(start, start + 45)
            images = pixels.from_uint8(jnp.asarray(batch["image"]))
            sequence = inference.sequences_of(tokenizer, variables, images)
            np.testing.assert_array_equal(records["label"][rows], batch["label"])
            np.testing.assert_array_equal(records["structure"][rows], sequence.structure)
            np.testing.assert_array_equal(records["tokens"][rows], sequence.tokens)
    assert len(np.unique(records["tokens"])) > 4
    assert (records["structure"][:NUM_IMAGES] != records["structure"][NUM_IMAGES:]).any()


def _open(config, cache, architecture, fingerprint):
    return token_cache.train_iterator(
        cache, config.data, architecture, fingerprint, Order(30, seed=0)
    )


def test_what_is_made_is_what_training_reads(config, loaded, cache):
    tokenizer, _, fingerprint = loaded
    with contextlib.closing(_open(config, cache, tokenizer.architecture, fingerprint)) as iterator:
        labels = np.concatenate([next(iterator)["label"] for _ in range(3)])
    np.testing.assert_array_equal(np.sort(labels), np.sort(_records(cache)["label"][:NUM_IMAGES]))


def test_an_interrupted_job_goes_on(config, cache, tmp_path, monkeypatch, caplog):
    encode, calls = token_records.encode, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return encode(*args)

    config.token_cache.directory = str(tmp_path)
    monkeypatch.setattr(token_records, "encode", failing)
    with pytest.raises(KeyboardInterrupt):
        jobs.tokenize(config, "unused")
    (finished,) = _shards(tmp_path)
    assert list(tmp_path.glob("*.array_record.part"))
    before = finished.stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        jobs.tokenize(config, "unused")
    assert finished.stat().st_mtime_ns == before
    _assert_same(tmp_path, cache)
    assert f"180 sequences of 90 images are in {tmp_path}, 48 bytes each: " in caplog.text


def test_a_finished_job_changes_nothing(config, cache):
    def times():
        return {path: time for path, time in _times(cache).items() if path.name != "lock"}

    before = times()
    jobs.tokenize(config, str(cache.parent))
    assert before == times()


def test_the_batch_size_changes_nothing(config, cache, tmp_path):
    config.token_cache.batch_size = 7
    jobs.tokenize(config, str(tmp_path))
    _assert_same(tmp_path / "token_cache", cache)


def test_another_tokenizer_is_refused(config, loaded, cache, random_variables, tmp_path):
    """One of other parameters, and one of another precision."""
    config.tokenizer.checkpoint = str(tmp_path / "weights")
    _save_weights(config, random_variables, 2.0)
    before = _times(cache)
    message = "was made with fingerprint .* but this config has finger"
    with pytest.raises(UserError, match=message):
        jobs.tokenize(config, str(cache.parent))
    tokenizer, variables, _ = loaded
    other = token_cache.fingerprint(sharding.on_host(variables), "bfloat16")
    with pytest.raises(UserError, match=message):
        _open(config, cache, tokenizer.architecture, other)
    assert before == _times(cache)


def _start(config, workdir, *distributed):
    arguments = [config.to_json_best_effort(), str(workdir), *distributed]
    return subprocess.Popen(
        [sys.executable, "tests/programs/tokenize_job.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )


@pytest.mark.slow
def test_a_killed_job_goes_on(config, cache, tmp_path):
    config.token_cache.shard_size = 3
    config.token_cache.batch_size = 1
    directory = tmp_path / "token_cache"
    for _ in range(3):
        finished = len(_shards(directory))
        with _start(config, tmp_path) as process:
            while process.poll() is None and len(_shards(directory)) < finished + 5:
                time.sleep(0.002)
            assert process.poll() is None, process.stdout.read()
            process.send_signal(signal.SIGKILL)
        assert len(_shards(directory)) < 60
    with _start(config, tmp_path) as process:
        output = process.stdout.read()
    assert process.returncode == 0, output
    _assert_same(directory, cache)


@pytest.mark.slow
def test_two_processes_make_the_same_files(config, cache, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [_start(config, tmp_path, address, str(index)) for index in range(2)]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    directory = tmp_path / "token_cache"
    assert [path.name for path in _shards(directory)] == [path.name for path in _shards(cache)]
    _assert_same(directory, cache)
