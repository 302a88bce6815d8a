"""Training in real processes that are killed: it ends as if nothing had happened."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest

from tests.runs import assert_same, command, forty_steps, run, states_of_uninterrupted

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tiny_config):
    """With a discriminator, whose state is part of what must not get lost."""
    tiny_config.data.image_size = 16
    tiny_config.frozen.random = True
    tiny_config.tokenizer.model.multipliers = (1, 1, 1)
    training = tiny_config.tokenizer.training
    training.adversarial_weight = 0.1
    training.discriminator.input_size = 16
    tiny_config.generator.model.drop_path = 0.2  # So that the random keys matter.
    return forty_steps(tiny_config)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return tmp_path_factory.mktemp("uninterrupted")


@pytest.fixture
def expected(config, uninterrupted):
    states = states_of_uninterrupted(config, uninterrupted)
    assert states["tokenizer"]["adversary"]["params"]
    return states


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


def test_killed_training_ends_with_the_same_parameters(config, expected, tmp_path):
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

        code = end_when(process, signal.SIGKILL, ready) if kills < 4 else process.wait(300)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert code == 0 and kills >= 3
    assert_same(tmp_path, expected)


def test_sigterm_saves_and_exits_cleanly(config, expected, tmp_path):
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
    assert_same(tmp_path, expected)
