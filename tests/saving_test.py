"""Saving that fails: full and read-only disks, killed processes; and other devices."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nvg_jax.checkpoint import TrainCheckpointer
from nvg_jax.errors import UserError
from tests.small_disk import small_disk
from tests.states import (
    ABSTRACT,
    ARCHITECTURE,
    abstract,
    assert_same,
    iterator,
    make_large,
    make_state,
)


@pytest.fixture
def disk(tmp_path):
    """Holds four checkpoints of `make_state`, and a few of 2 MB."""
    with small_disk(tmp_path, "8m") as mounted:
        yield mounted


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def lines(caplog, level: int = logging.WARNING) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= level]
    caplog.clear()
    return found


@pytest.mark.parametrize("left", [0, 40_000, 1_000_000])
def test_a_full_disk_costs_one_checkpoint_and_is_said(disk, caplog, left):
    """Whether nothing fits any more, or some of the files."""
    caplog.set_level(logging.INFO, logger="nvg_jax")
    directory = disk.path / "checkpoints"
    with TrainCheckpointer(directory, ARCHITECTURE, keep=2) as checkpointer:
        checkpointer.save(1, make_large(1), iterator(1))
        checkpointer.save(2, make_large(2), iterator(2))
        assert checkpointer.wait() is None
        disk.fill(leave=left)
        checkpointer.save(3, make_large(3), iterator(3))
        checkpointer.save(4, make_large(4), iterator(4))
        (line,) = lines(caplog)
        assert "saving step 3 failed (No space left on device): step 2 stays usable" in line
        assert "training goes on" in line
        problem = checkpointer.wait()
        assert "saving step 4 failed (No space left on device): step 2 stays" in problem
        assert names(directory) == ["1", "2"]
        disk.free()
        checkpointer.save(5, make_large(5), iterator(5))
        assert checkpointer.wait() is None
        assert "saving works again: step 5" in lines(caplog, logging.INFO)[-1]
        checkpointer.save(6, make_large(6), iterator(6))
    assert lines(caplog, logging.INFO) == []
    assert names(directory) == ["5", "6"]
    data_iterator = iterator()
    with TrainCheckpointer(directory, ARCHITECTURE, keep=2) as checkpointer:
        state, step = checkpointer.restore(abstract(make_large(0)), data_iterator)
    assert step == 6
    assert_same(state, make_large(6))
    np.testing.assert_array_equal(next(data_iterator), next(iterator(6)))


def test_a_failed_save_is_noticed_without_another(disk, caplog):
    with TrainCheckpointer(disk.path / "c", ARCHITECTURE, keep=2) as checkpointer:
        disk.fill()
        checkpointer.save(1, make_large(1))
        deadline = time.time() + 30
        while not caplog.records and time.time() < deadline:
            checkpointer.check()
            time.sleep(0.01)
        (line,) = lines(caplog)
        assert "step 1 failed (No space left on device): nothing is saved yet" in line
        checkpointer.check()
        assert checkpointer.wait() is None
    assert lines(caplog) == [] and names(disk.path / "c") == []


def test_a_disk_that_becomes_read_only_ends_nothing(disk, caplog):
    directory = disk.path / "checkpoints"
    with TrainCheckpointer(directory, ARCHITECTURE, keep=2) as checkpointer:
        checkpointer.save(1, make_state(1), iterator(1))
        assert checkpointer.wait() is None
        disk.make_writable(False)
        checkpointer.save(2, make_state(2), iterator(2))
        assert "step 2 failed (Read-only file system): step 1 stays" in checkpointer.wait()
        state, step = checkpointer.restore(ABSTRACT)
        assert step == 1
        assert_same(state, make_state(1))
        disk.make_writable(True)
        checkpointer.save(3, make_state(3), iterator(3))
        assert checkpointer.wait() is None
    assert names(directory) == ["1", "3"]
    assert lines(caplog) == []


def test_a_directory_that_cannot_be_made_is_a_mistake(disk, tmp_path):
    disk.make_writable(False)
    (tmp_path / "file").touch()
    for place, reason in ((disk.path, "Read-only file system"), (tmp_path / "file", "Not a dir")):
        with pytest.raises(UserError, match=f"no checkpoint can be written to .*{reason}.*workdir"):
            TrainCheckpointer(place / "checkpoints", ARCHITECTURE, keep=2)


def test_half_written_steps_are_named_ignored_and_cleared_away(tmp_path, caplog):
    with TrainCheckpointer(tmp_path, ARCHITECTURE, keep=2) as checkpointer:
        checkpointer.save(20, make_state(20))
    for step in (25, 30):
        shutil.copytree(tmp_path / "20", tmp_path / f"{step}.orbax-checkpoint-tmp")
    with TrainCheckpointer(tmp_path, ARCHITECTURE, keep=2) as checkpointer:
        assert caplog.text.count("was not written to its end and is removed") == 2
        assert checkpointer.restore(ABSTRACT)[1] == 20
        checkpointer.save(30, make_state(30))
    assert names(tmp_path) == ["20", "30"]


def run_python(code: str, *arguments, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


SAVE_FOR_EVER = """
import sys, itertools
from nvg_jax.checkpoint import TrainCheckpointer
from tests.states import make_large

with TrainCheckpointer(sys.argv[1], "line", keep=2) as checkpointer:
    for step in itertools.count():
        checkpointer.save(step, make_large(step))
"""


def test_killed_while_saving_goes_on_from_the_step_before(tmp_path):
    process = run_python(SAVE_FOR_EVER, tmp_path)
    try:
        deadline = time.time() + 60
        while process.poll() is None and time.time() < deadline:
            time.sleep(0.001)
            unfinished = [path.name.split(".")[0] for path in tmp_path.glob("*tmp*")]
            if unfinished and int(unfinished[0]) >= 3 and any(tmp_path.glob("*tmp*/ema/**/d/*")):
                process.send_signal(signal.SIGSTOP)  # look again: it may have been renamed
                if any(tmp_path.glob("*tmp*/ema/**/d/*")):
                    break
                process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    (half_written,) = tmp_path.glob("*tmp*")
    killed_step = int(half_written.name.split(".")[0])

    with TrainCheckpointer(tmp_path, "line", keep=2) as checkpointer:
        state, step = checkpointer.restore(abstract(make_large(0)))
        assert step == killed_step - 1
        assert_same(state, make_large(step))
        checkpointer.save(killed_step, state)
    assert not half_written.exists()
    with TrainCheckpointer(tmp_path, "line", keep=2) as checkpointer:
        assert checkpointer.restore(abstract(make_large(0)))[1] == killed_step


ACROSS_SHARDINGS = """
import dataclasses, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from nvg_jax.checkpoint import TrainCheckpointer, restore_ema
from tests.states import State

assert jax.device_count() == 8
eight = Mesh(np.array(jax.devices()), ("x",))
two = Mesh(np.array(jax.devices()[3:5]), ("x",))
w = jax.random.normal(jax.random.key(0), (64, 32))
expected = np.asarray(w)
w = jax.device_put(w, NamedSharding(eight, P("x")))
with TrainCheckpointer(sys.argv[1], "line", keep=2) as checkpointer:
    checkpointer.save(1, State({}, w, {}, w))
for sharding in (NamedSharding(two, P(None, "x")), NamedSharding(eight, P()), None):
    wanted = jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=sharding)
    with TrainCheckpointer(sys.argv[1], "line", keep=2) as checkpointer:
        state, step = checkpointer.restore(State({}, wanted, {}, wanted))
    ema, _ = restore_ema(sys.argv[1], "line", wanted)
    for restored in (state.ema, state.params, ema):
        assert np.asarray(restored).tobytes() == expected.tobytes()
        assert sharding is None or restored.sharding == sharding
"""


def test_arrays_of_eight_devices_restore_onto_others_and_quietly(tmp_path):
    process = run_python(
        ACROSS_SHARDINGS, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=8"
    )
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output == "" and "absl" not in errors and "orbax" not in errors


def test_nothing_of_a_failed_save_comes_back(tmp_path):
    """Orbax has a thread for each part, and waits for the first that fails only."""
    noise = np.random.default_rng(0).normal(size=(40, 64, 64)).astype(np.float32)
    many = dict(enumerate(noise))
    state = make_state(1).replace(ema=many, params=many, opt_state=many)
    with small_disk(tmp_path, "8m") as disk:
        directory = disk.path / "checkpoints"
        with TrainCheckpointer(directory, ARCHITECTURE, keep=2) as checkpointer:
            for left in (0, 8_000, 100_000, 300_000, 1_000_000):
                disk.fill(leave=left)
                checkpointer.save(1, state)
                assert "No space left" in checkpointer.wait()
                assert names(directory) == []
                disk.free()


@pytest.mark.slow
def test_two_processes_fail_alike_and_share_the_reading(tmp_path):
    flags = tmp_path / "flags"
    flags.mkdir()
    with small_disk(tmp_path, "14m") as disk:
        directory = disk.path / "checkpoints"
        launcher = subprocess.Popen(
            ["launch/local.sh", "-n", "2", "-c", "2", sys.executable, "-m", "tests.sharing"]
            + [str(directory), str(flags)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

        def wait_for(name: str) -> None:
            while not all((flags / f"{name}{index}").exists() for index in (0, 1)):
                assert launcher.poll() is None, launcher.stdout.read()
                time.sleep(0.05)

        wait_for("saved")
        disk.fill(leave=200_000)
        (flags / "full").touch()
        wait_for("failed")
        disk.free()
        (flags / "free").touch()
        output, _ = launcher.communicate(timeout=200)
        assert launcher.returncode == 0, output
        assert names(directory) == ["4", "5.damaged"]
        found = [p for p in (directory / "5.damaged" / "ema").rglob("*") if p.is_file()]
    read = [(flags / f"read{index}").read_text().splitlines() for index in (0, 1)]
    assert all(read) and not set(read[0]) & set(read[1])
    assert len(read[0] + read[1]) == len(found)
    assert len(list(flags.glob("refused_weights*_[01]"))) == 4
    assert "Traceback" not in output
    assert output.count("step 5 is damaged") == 2
