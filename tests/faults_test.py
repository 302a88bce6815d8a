"""Real processes that are killed, stopped while saving, on a full disk, and lose their workers.

Each training ends as if nothing had happened.
"""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import time

import numpy as np
import pytest

from tests.runs import STEPS, assert_same, command, final_states, run, short
from tests.small_disk import small_disk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def config(tiny_config):
    tiny_config.data.resize_ratio = 1.25  # So that random crops matter.
    tiny_config.generator.model.drop_path = 0.2  # So that the random keys matter.
    return short(tiny_config)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return tmp_path_factory.mktemp("uninterrupted")


@pytest.fixture
def expected(config, uninterrupted):
    """What a run ends with to which nothing happens."""
    if not any(uninterrupted.iterdir()):
        result = run(command(config, uninterrupted))
        assert result.returncode == 0, result.stderr
    return final_states(uninterrupted)


class Training:
    """A process under way; what it says goes to a file, which never makes it wait."""

    def __init__(self, arguments: list[str], log: pathlib.Path):
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT)
        self.pid = self._process.pid

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.kill()
        self._process.wait()

    def wait_until(self, ready) -> None:
        while not ready():
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.001)

    def is_over(self) -> bool:
        return self._process.poll() is not None

    def end(self, timeout: int = 500) -> tuple[int, str]:
        """Waits for it: its exit code and all that it said."""
        return self._process.wait(timeout), self._log.read_text()


def test_killed_training_ends_with_the_same_parameters(config, expected, tmp_path):
    random = np.random.default_rng(0)
    kills, code = 0, None
    while code != 0:
        known = set(tmp_path.glob("*/checkpoints/*"))
        with Training(command(config, tmp_path), tmp_path / "log") as training:
            # The first new entry may be a half-written checkpoint: a kill can hit the middle of it.
            while kills < 4 and not training.is_over():
                if not set(tmp_path.glob("*/checkpoints/*")) <= known:
                    time.sleep(0.3 * random.random())
                    os.kill(training.pid, signal.SIGKILL)
                    break
                time.sleep(0.02)
            code, output = training.end()
        assert code in (0, -signal.SIGKILL), output
        kills += code != 0
    assert kills >= 3
    assert_same(tmp_path, expected)


def test_training_on_a_full_disk_says_so_and_goes_on_after(config, expected, tmp_path):
    """It cannot keep what it ends with: one line and an exit code, and nothing else is lost."""
    with small_disk(tmp_path, "1g") as disk:
        workdir = disk.path / "run"
        first = workdir / "tokenizer" / "checkpoints" / "4"
        with Training(command(config, workdir), tmp_path / "log") as training:
            training.wait_until(first.exists)
            disk.fill()
            code, output = training.end()
        assert code == 1, output
        assert "saving step" in output and "training goes on" in output
        (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
        problem = (
            rf"saving step {STEPS} failed \(No space left on device\): step \d+ stays usable in "
        )
        assert re.search(problem, error) and "run the same command again" in error
        assert "Traceback" not in output and "orbax" not in output.replace(".orbax-", "")
        kept = sorted(path.name for path in first.parent.iterdir())
        assert kept and all(name.isdigit() for name in kept)
        disk.free()
        result = run(command(config, workdir))
        assert result.returncode == 0, result.stderr
        assert "tokenizer: resumed at step" in result.stdout
        assert_same(workdir, expected)


def test_sigterm_while_saving(config, expected, tmp_path):
    """In each training once, while a checkpoint is half written."""
    for name in ("tokenizer", "generator"):
        checkpoints = tmp_path / name / "checkpoints"

        def is_half_written(checkpoints=checkpoints):
            return bool(list(checkpoints.glob("*tmp*/*")))

        with Training(command(config, tmp_path), tmp_path / "log") as training:
            while True:
                training.wait_until(is_half_written)
                os.kill(training.pid, signal.SIGSTOP)  # Look again: it may be renamed.
                if is_half_written():
                    break
                os.kill(training.pid, signal.SIGCONT)
            os.kill(training.pid, signal.SIGTERM)
            os.kill(training.pid, signal.SIGCONT)
            code, output = training.end()
        assert code == 0, output
        saved = re.search(rf"stopped by SIGTERM: saved step (\d+) of {STEPS} of the {name}", output)
        assert saved and (checkpoints / saved[1]).is_dir()
        assert not list(checkpoints.glob("*tmp*"))
    result = run(command(config, tmp_path))
    assert result.returncode == 0, result.stderr
    assert "generator: resumed at step" in result.stdout
    assert_same(tmp_path, expected)


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="finds processes in /proc")
def test_killed_data_workers(config, expected, tmp_path):
    """Nor do workers hold what only the main process needs, the devices; and none TensorFlow."""
    arguments = [*command(config, tmp_path), "--config.data.num_workers=2"]
    with Training(arguments, tmp_path / "log") as training:
        for killed, name in enumerate(("tokenizer", "generator")):
            checkpoints = tmp_path / name / "checkpoints"
            training.wait_until(lambda place=checkpoints: list(place.glob("[0-9]*")))
            workers = workers_of(training.pid)
            assert len(workers) == 2
            assert "tensorflow/" not in libraries(training.pid)
            for worker in workers:
                found = libraries(worker)
                assert "array_record" in found
                assert not re.search("tensorflow/|libtpu|xla_cuda", found)
                assert not any(map(_OF_JAX_DEVICES.match, threads(worker)))
            assert any(map(_OF_JAX_DEVICES.match, threads(training.pid)))
            os.kill(workers[killed], signal.SIGKILL)
        code, output = training.end()
    assert code == 0, output
    assert output.count("a data worker has died (exit code -9)") == 2
    assert "Traceback" not in output
    assert_same(tmp_path, expected)


_OF_JAX_DEVICES = re.compile("tf_XLAEigen|llvm-worker")


def threads(pid: int) -> list[str]:
    """Their names."""
    return read_all(pid, "task/*/comm")


def libraries(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/maps").read_text()


def workers_of(pid: int) -> list[int]:
    """Children are listed by the thread that started them."""
    children = " ".join(read_all(pid, "task/*/children")).split()
    return [int(child) for child in children if "spawn_main" in "".join(read_all(child, "cmdline"))]


def read_all(pid: int | str, pattern: str) -> list[str]:
    """What the system says of a process; its threads and children may end meanwhile."""
    found = []
    for path in pathlib.Path(f"/proc/{pid}").glob(pattern):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append(path.read_text())
    return found


def test_a_token_cache_on_a_full_disk(config, tmp_path):
    config.tokenizer.training.epochs = 3 / 359
    result = run([*command(config, tmp_path), "--config.generator.training.epochs=0.001"])
    assert result.returncode == 0, result.stderr
    with small_disk(tmp_path, "4m") as disk:
        cache = disk.path / "cache"
        arguments = [
            *command(config, tmp_path),
            "--job=tokenize",
            f"--config.token_cache.directory={cache}",
            "--config.token_cache.shard_size=200",
            "--config.token_cache.batch_size=50",
            "--config.token_cache.num_crops=4",
        ]
        disk.fill(leave=600_000)
        result = run(arguments)
        assert result.returncode == 1
        (line,) = result.stderr.strip().splitlines()
        assert re.search(r"^error: .*array_record cannot be written \(.*No space left.*make", line)
        kept = {path.name: path.stat().st_mtime for path in cache.glob("*.array_record")}
        assert kept and not list(cache.glob("*.part"))
        disk.free()
        result = run(arguments)
        assert result.returncode == 0, result.stderr
        assert kept.items() <= {path.name: path.stat().st_mtime for path in cache.iterdir()}.items()
        assert len(list(cache.glob("*.array_record"))) == 29
