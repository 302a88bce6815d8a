"""Worker processes: they change nothing, whatever happens to them."""

import contextlib
import itertools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from nvg_jax.data import pipeline
from nvg_jax.errors import UserError
from tests.data.batches import ORDER, assert_equal, crop_batches, train_batches


@pytest.mark.slow
def test_worker_processes_change_nothing(photos_config):
    """Nor does it matter who wrote the state and who reads it."""
    config, with_workers = photos_config(), photos_config(num_workers=2)
    expected = train_batches(config, 7)
    assert_equal(expected, train_batches(with_workers, 7))
    states = []
    for written_by in (config, with_workers):
        with contextlib.closing(pipeline.train_iterator(written_by, ORDER)) as iterator:
            for _ in range(3):
                next(iterator)
            states.append(iterator.get_state())
    assert states[0] == states[1]
    assert_equal(expected[3:], train_batches(with_workers, 4, states[0]))
    evaluated, others = (
        list(pipeline.evaluation_batches(each, "validation", 3)) for each in (config, with_workers)
    )
    assert_equal(evaluated, others)
    crops, others = (crop_batches(each, (9, 2, 20)) for each in (config, with_workers))
    assert_equal(crops, others)


def _kill_workers(count=None):
    """Ends data workers of this process as the kernel does when memory is short."""
    workers = multiprocessing.active_children()[:count]
    assert workers
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.slow
def test_dying_workers_change_no_batch(photos_config, caplog):
    """First one of two, and when that has been noticed, which batches made ahead delay, both."""
    expected = train_batches(photos_config(), 30)
    config = photos_config(num_workers=2)
    batches, killed = [], 0
    with contextlib.closing(pipeline.train_iterator(config, ORDER)) as iterator:
        for _ in expected:
            batches.append(next(iterator))
            if killed < 2 and killed == len(caplog.records):
                killed += 1
                _kill_workers(count=killed)
    assert_equal(batches, expected)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert all("a data worker has died (exit code -9)" in line for line in warnings)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_workers_that_die_again_and_again_are_an_error(photos_config, caplog):
    config = photos_config(num_workers=1)
    with contextlib.closing(pipeline.train_iterator(config, ORDER)) as iterator:
        next(iterator)
        with pytest.raises(UserError, match="died 4 times within .* lower config.data.num_workers"):
            for _ in range(100):
                if workers := multiprocessing.active_children():
                    os.kill(workers[0].pid, signal.SIGKILL)
                next(iterator)
    assert len(caplog.records) == 3


@pytest.mark.slow
def test_a_dying_worker_changes_no_evaluation(photos_config, caplog):
    expected = list(pipeline.evaluation_batches(photos_config(), "validation", 1))
    batches = []
    for batch in pipeline.evaluation_batches(photos_config(num_workers=2), "validation", 1):
        if not batches:
            _kill_workers()
        batches.append(batch)
    assert_equal(batches, expected)
    assert "a data worker has died" in caplog.text


@contextlib.contextmanager
def _reader(tiny_dir, num_workers):
    """A process that has read a dataset, none of whose code it knows, and waits."""
    process = subprocess.Popen(
        [sys.executable, "tests/programs/read_dataset.py", tiny_dir, str(num_workers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_reading_imports_no_tensorflow(tiny_dir):
    with _reader(tiny_dir, num_workers=0) as process:
        assert process.stdout.readline() == "False\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")
def test_workers_have_no_tensorflow_and_end_with_a_killed_main_process(tiny_dir):
    with _reader(tiny_dir, num_workers=2) as process:
        assert process.stdout.readline() == "False\n"
        workers = _workers_of(process.pid)
        assert len(workers) == 2
        for worker in workers:
            assert "tensorflow/" not in pathlib.Path(f"/proc/{worker}/maps").read_text()
        process.send_signal(signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{worker}") for worker in workers):
        assert time.monotonic() < deadline, "workers are left behind"
        time.sleep(0.1)


def _workers_of(pid):
    # Children are listed by the thread that started them.
    children = [
        path.read_text().split() for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    ]
    return [
        child
        for child in itertools.chain(*children)
        if "spawn_main" in pathlib.Path(f"/proc/{child}/cmdline").read_text()
    ]
