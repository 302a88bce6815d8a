"""Training in real processes that are killed: it ends as if nothing had happened."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from ml_collections import ConfigDict

pytestmark = pytest.mark.slow


def command(config, workdir) -> list[str]:
    """The command line of `config`, which is the digits config with a few changes."""
    changes = {
        "data.data_dir": config.data.data_dir,
        "data.image_size": config.data.image_size,
        "frozen.random": config.frozen.random,
        "tokenizer.scale_batches": config.tokenizer.scale_batches,
        "sampling.num_samples": 10,
        "sampling.batch_size": 10,
    }
    for name in ("tokenizer", "generator"):
        for section in ("model", "training"):
            changes |= flattened(config[name][section], f"{name}.{section}")
    return [
        sys.executable,
        "-m",
        "nvg_jax.main",
        "--config=configs/nvg_digits.py",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in changes.items()),
    ]


def flattened(config, prefix: str) -> dict:
    values = {}
    for key, value in config.items():
        name = f"{prefix}.{key}"
        values |= flattened(value, name) if isinstance(value, ConfigDict) else {name: value}
    return values


def run(arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


@pytest.fixture
def config(tiny_config):
    """With a discriminator, whose state is part of what must not get lost."""
    tiny_config.data.image_size = 16
    tiny_config.frozen.random = True
    tiny_config.tokenizer.model.multipliers = (1, 1, 1)
    training = tiny_config.tokenizer.training
    training.lpips_weight, training.adversarial_weight = 1.0, 0.1
    training.discriminator.input_size = 16
    for training in (tiny_config.tokenizer.training, tiny_config.generator.training):
        training.batch_size = 16
        training.epochs = 40 / 89  # Steps of an epoch of 1,437 images.
        training.checkpoint_every = 3
        training.log_every = 10
        training.image_every = 1000
    tiny_config.generator.model.drop_path = 0.2  # So that the random keys matter.
    return tiny_config


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return tmp_path_factory.mktemp("uninterrupted")


def final_states(workdir):
    """All arrays of the last checkpoints: optimizers, averages and discriminator included."""
    states = {}
    for name in ("tokenizer", "generator"):
        path = epath.Path(workdir) / name / "checkpoints" / "40" / "state"
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            states[name] = checkpointer.restore(path)
    assert states["tokenizer"]["adversary"]["params"]
    return states


def run_uninterrupted(config, workdir: pathlib.Path):
    if not any(workdir.iterdir()):
        result = run(command(config, workdir))
        assert result.returncode == 0, result.stderr
    return final_states(workdir)


def end_when(process: subprocess.Popen, number: int, ready) -> int:
    """Sends a signal as soon as `ready`, unless the process has ended by itself."""
    try:
        while process.poll() is None and not ready():
            time.sleep(0.02)
        if process.poll() is None:
            os.kill(process.pid, number)
        return process.wait(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_killed_training_ends_with_the_same_parameters(config, uninterrupted, tmp_path):
    expected = run_uninterrupted(config, uninterrupted)
    random = np.random.default_rng(0)
    kills = 0
    for _ in range(12):
        process = subprocess.Popen(
            command(config, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        known = set(tmp_path.glob("*/checkpoints/*"))
        # The first new entry may be a half-written checkpoint: a kill can hit the middle of it.
        patience = 0.3 * random.random()

        def ready(known=known, patience=patience):
            if set(tmp_path.glob("*/checkpoints/*")) <= known:
                return False
            time.sleep(patience)
            return True

        code = end_when(process, signal.SIGKILL, ready) if kills < 5 else process.wait(300)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert code == 0 and kills >= 3
    jax.tree.map(np.testing.assert_array_equal, final_states(tmp_path), expected)


def test_sigterm_saves_and_exits_cleanly(config, uninterrupted, tmp_path):
    expected = run_uninterrupted(config, uninterrupted)
    process = subprocess.Popen(
        command(config, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    code = end_when(process, signal.SIGTERM, lambda: any(tmp_path.glob("*/checkpoints/[0-9]*")))
    output = process.stdout.read()
    assert code == 0, output
    assert "stopped by SIGTERM: saved step" in output and "run the same command again" in output
    result = run(command(config, tmp_path))
    assert result.returncode == 0, result.stderr
    assert "resumed at step" in result.stdout
    jax.tree.map(np.testing.assert_array_equal, final_states(tmp_path), expected)
