"""Runs of several processes: what they are told, and real ones that are killed and stopped."""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from nvg_jax import distributed
from nvg_jax.errors import UserError
from tests.runs import state_at

GIVEN = {"coordinator_address": "host0:1234", "num_processes": 4, "process_id": 3}
ENVIRONMENT = {
    "JAX_COORDINATOR_ADDRESS": "host0:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
STEPS = 12


def test_processes_are_told_by_flags_or_the_environment():
    assert distributed.from_environment({}) == {}
    assert distributed.from_environment({"JAX_PROCESS_ID": ""}) == {}
    assert distributed.from_environment(ENVIRONMENT) == GIVEN
    assert distributed.from_environment({}, **GIVEN) == GIVEN
    assert distributed.from_environment(ENVIRONMENT, process_id=0) == GIVEN | {"process_id": 0}


@pytest.mark.parametrize(
    ("environment", "flags", "message"),
    [
        ({"JAX_NUM_PROCESSES": "four"}, {}, "NUM_PROCESSES. is 'four': give a number"),
        ({}, {"process_id": -1}, "--process_id .* is -1: give a number from 0"),
        ({}, {"coordinator_address": "host0"}, "is 'host0': give host:port"),
        ({}, {"coordinator_address": ":x"}, "is ':x': give host:port"),
    ],
)
def test_mistakes_in_what_is_told(environment, flags, message):
    with pytest.raises(UserError, match=message) as error:
        distributed.from_environment(environment, **flags)
    assert len(str(error.value).splitlines()) == 1


POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize(
    ("environment", "given", "message"),
    [
        ({}, {"num_processes": 2}, r"--num_processes .* given, .*: give --coordinator_address .*"),
        ({}, {"num_processes": 2, "process_id": 0}, "_PROCESS_ID. given, .* give --coordinator"),
        ({"SLURM_NTASKS": "8"}, {}, "has 8 tasks, but srun .* for a run of one process set JAX_N"),
        (
            POD,
            {},
            "a pod in Kubernetes, and nothing tells of the others: set JAX_COORD",
        ),
        (POD | {"JOB_COMPLETION_INDEX": "0"}, {}, "as an indexed Job with jax.k8s. installed"),
        (POD | {"TPU_WORKER_ID": "0"}, {}, "for a run of one process set JAX_NUM_PROCESSES=1"),
    ],
)
def test_half_of_what_is_needed(environment, given, message):
    with pytest.raises(UserError, match=message) as error:
        distributed.check_detection(environment, given)
    assert len(str(error.value).splitlines()) == 1


def test_alone_nothing_is_missing(monkeypatch):
    distributed.check_detection({}, {})
    distributed.check_detection({"SLURM_NTASKS": "1"}, {})
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(UserError, match="a pod in Kubernetes"), distributed.processes():
        pass
    with distributed.processes(num_processes=1) as index:
        assert index == 0
    assert distributed.agreed("said") == "said"


_TRIVIAL = """
import sys
import time
import jax
from jax.experimental import multihost_utils
from nvg_jax import distributed
from nvg_jax.errors import UserError

jax.config.update("jax_platforms", "cpu")
try:
    with distributed.processes(start_seconds=5) as index:
        print("process", index, "of", jax.process_count(), flush=True)
        {body}
except UserError as error:
    sys.exit(f"error: {{error}}")
"""


def trivial(body: str, processes: int | None, **environment: str) -> subprocess.CompletedProcess:
    """Processes of a run that does nothing else."""
    launcher = ["launch/local.sh", "-n", str(processes), "-c", "1"] if processes else []
    return subprocess.run(
        [*launcher, sys.executable, "-c", _TRIVIAL.format(body=body)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.slow
def test_trivial_runs():
    result = trivial("", None)
    assert (result.returncode, result.stdout) == (0, "process 0 of 1\n")

    result = trivial("print(distributed.agreed('one' * index), distributed.agreed(''))", 2)
    assert result.returncode == 0, result.stdout
    assert {"[0] one ", "[1] one "} < set(result.stdout.splitlines())

    result = trivial("index or time.sleep(3)", 2)
    assert result.returncode == 0, result.stdout
    assert {"[0] process 0 of 2", "[1] process 1 of 2"} < set(result.stdout.splitlines())

    result = trivial("raise UserError('this is wrong')", 2)
    assert result.returncode == 1
    assert "[0] error: this is wrong" in result.stdout and "Traceback" not in result.stdout
    assert "[1] error: this is wrong" in result.stdout and "has ended (" not in result.stdout

    # Only one makes the mistake, and the other one waits for it.
    wait = "multihost_utils.sync_global_devices('x')"
    result = trivial(f"if index: raise UserError('wrong')\n        {wait}", 2)
    assert result.returncode == 1
    assert "[1] error: wrong" in result.stdout and "Traceback" not in result.stdout
    assert "[0] error: another process of this run has ended" in result.stdout


@pytest.mark.slow
def test_processes_that_never_come():
    result = trivial("", None, JAX_NUM_PROCESSES="2")
    assert result.returncode == 1 and len(result.stdout.splitlines()) == 1
    assert result.stdout.startswith("error: --num_processes")

    result = trivial("", None, **ENVIRONMENT | {"JAX_PROCESS_ID": "4"})
    assert result.returncode == 1 and "Got process_id=4, num_processes=4" in result.stdout
    assert result.stdout.startswith("error: this process cannot join a run")

    with socket.create_server(("", 0)) as listener:
        told = ENVIRONMENT | {"JAX_COORDINATOR_ADDRESS": f"localhost:{listener.getsockname()[1]}"}
        result = trivial("", None, **told | {"JAX_PROCESS_ID": "0"})
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1].startswith("error: process 0 cannot listen on port")

    for index in ("0", "1"):
        told = ENVIRONMENT | {"JAX_COORDINATOR_ADDRESS": f"localhost:2451{index}"}
        result = trivial("", None, **told | {"JAX_PROCESS_ID": index})
        assert result.returncode == 1
        assert result.stdout.splitlines()[-1].startswith("error: the processes of this run did not")


@contextlib.contextmanager
def training(data_dir, workdir: pathlib.Path, processes: int, devices: int, *changes: str):
    """A run whose processes are killed at the end; gives the launcher, with their pids."""
    config = {
        "data.data_dir": data_dir,
        "data.image_size": 8,
        "stages": (0, 4),
        "tokenizer.model.multipliers": (1, 1),
        "tokenizer.model.latent_channels": 4,
        "tokenizer.model.vocab_size": 16,
        "tokenizer.scale_batches": 2,
        "tokenizer.training.batch_size": 16,
        "tokenizer.training.epochs": STEPS / 89,  # Steps of an epoch of 1,437 images.
        "tokenizer.training.checkpoint_every": 3,
        "tokenizer.training.image_every": 1000,
        "generator.training.batch_size": 16,
        "sampling.batch_size": 16,
    }
    flags = [f"--config.{key}={value}" for key, value in config.items()]
    logs = workdir.with_name(f"{workdir.name}_{time.monotonic_ns()}")
    launcher = subprocess.Popen(
        ["launch/local.sh", "-n", str(processes), "-c", str(devices), "-l", str(logs)]
        + [sys.executable, "-m", "nvg_jax.main", "--config=configs/nvg_digits.py"]
        + [f"--workdir={workdir}", *flags, *changes]
    )

    def output(index: int) -> str:
        path = logs / f"{index}.log"
        return path.read_text() if path.exists() else ""

    def pid(index: int) -> int:
        return int(re.search(r"has pid (\d+)", output(index))[1])

    launcher.output, launcher.process_id = output, pid
    try:
        yield launcher
    finally:
        if launcher.poll() is None:
            for index in range(processes):
                os.kill(pid(index), signal.SIGKILL)
            launcher.wait(60)


def wait_for(launcher, checkpoint: pathlib.Path) -> None:
    deadline = time.monotonic() + 400
    while not checkpoint.exists():
        assert launcher.poll() is None and time.monotonic() < deadline, launcher.output(0)
        time.sleep(0.02)


def tokenizer_steps(workdir: pathlib.Path) -> list[int]:
    names = [path.name for path in workdir.glob("tokenizer/checkpoints/*")]
    return sorted(int(name) for name in names if name.isdigit())


def train_to_the_end(data_dir, workdir, processes: int, devices: int, *changes: str) -> str:
    """Trains the tokenizer, and leaves the generator alone; gives what process 0 said."""
    with training(data_dir, workdir, processes, devices, *changes) as launcher:
        wait_for(launcher, workdir / "tokenizer" / "checkpoints" / str(STEPS))
        return launcher.output(0)


@pytest.fixture(scope="module")
def uninterrupted(digits_dir, tmp_path_factory):
    """What two processes of two devices come to."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    train_to_the_end(digits_dir, workdir, 2, 2)
    return workdir


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_when_one_is_killed_the_other_ends_and_both_go_on(uninterrupted, digits_dir, tmp_path):
    workdir = tmp_path / "run"
    for victim, checkpoint in enumerate(("3", "6")):
        with training(digits_dir, workdir, 2, 2) as launcher:
            wait_for(launcher, workdir / "tokenizer" / "checkpoints" / checkpoint)
            os.kill(launcher.process_id(victim), signal.SIGKILL)
            killed = time.monotonic()
            assert launcher.wait(60) == 128 + signal.SIGKILL
            assert time.monotonic() - killed < 60
            output = launcher.output(1 - victim)
        (line,) = (line for line in output.splitlines() if line.startswith("error:"))
        assert line.startswith("error: another process of this run has ended (")
        assert line.endswith("and training goes on from the last checkpoint")
        assert "Traceback" not in output and "Fatal Python error" not in output
        assert "killed" not in output  # It ended by itself, within the launcher's patience.
        assert STEPS not in tokenizer_steps(workdir)

    assert "tokenizer: resumed at step" in train_to_the_end(digits_dir, workdir, 2, 2)
    found, expected = (state_at(run, "tokenizer", STEPS) for run in (workdir, uninterrupted))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_stopped_run_goes_on_with_other_processes_and_another_mesh(
    uninterrupted, digits_dir, tmp_path
):
    workdir = tmp_path / "run"
    with training(digits_dir, workdir, 2, 2) as launcher:
        wait_for(launcher, workdir / "tokenizer" / "checkpoints" / "3")
        os.kill(launcher.process_id(1), signal.SIGTERM)  # Process 0 does not know of it.
        assert launcher.wait(60) == 0, launcher.output(0) + launcher.output(1)
        output = launcher.output(0)
    (saved,) = re.findall(r"stopped by SIGTERM: saved step (\d+) of", output)
    assert tokenizer_steps(workdir)[-1] == int(saved) < STEPS
    assert "error" not in launcher.output(1) and "stopped by" not in launcher.output(1)

    output = train_to_the_end(digits_dir, workdir, 1, 4, "--config.mesh.fsdp=2")
    assert f"tokenizer: resumed at step {saved} of {STEPS}" in output
    found = state_at(workdir, "tokenizer", STEPS)
    expected = state_at(uninterrupted, "tokenizer", STEPS)
    before = state_at(uninterrupted, "tokenizer", STEPS - 3)
    compared = 0
    for part in ("params", "ema"):
        for (path, value), other, earlier in zip(
            jax.tree.leaves_with_path(found[part]),
            jax.tree.leaves(expected[part]),
            jax.tree.leaves(before[part]),
            strict=True,
        ):
            name = jax.tree_util.keystr(path)
            moved = np.linalg.norm(other - earlier)
            # A bias before a normalization has a gradient of rounding errors alone.
            if moved and "bias" not in name:
                assert np.linalg.norm(value - other) < 1e-3 * moved, name
                compared += 1
    assert compared > 50
