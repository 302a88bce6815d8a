"""What is said about the start of a process, and what the next one saves."""

import os
import re
import subprocess
import sys
import time

import pytest

from nvg_jax import startup
from tests.runs import command, run

_LINE = re.compile(
    r"first step after ([\d.]+) s: imports ([\d.]+), data ([\d.]+), initialisation ([\d.]+), "
    r"tracing ([\d.]+), compilation ([\d.]+), step ([\d.]+)$",
    re.MULTILINE,
)


def test_a_part_counts_without_the_compilation_in_it(monkeypatch):
    monkeypatch.setattr(startup, "_seconds", type(startup._seconds)())
    for _ in range(2):
        with pytest.raises(KeyError), startup.part("tracing"):
            time.sleep(0.1)
            startup._count_compilation(startup._COMPILED, 0.05)
            raise KeyError
    assert startup._seconds["compilation"] == 0.1
    assert 0.1 <= startup._seconds["tracing"] < 0.2


_SMALL = """
import sys, time
import jax, jax.numpy as jnp
from nvg_jax import cli, startup

cli._show_messages()
startup.start(sys.argv[1])

@jax.jit
def program(x):
    for _ in range(200):
        x = jnp.sin(x @ x) + jnp.cumsum(x, axis=0)
    return x

with startup.part("data"):
    time.sleep(0.3)
with startup.part("tracing"):
    y = program(jnp.ones((8, 8)))
with startup.part("step"):
    jax.block_until_ready(y)
startup.log_first_step()
startup.log_first_step()
print(jax.config.jax_compilation_cache_dir)
"""


def run_small(workdir, **environment):
    clean = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.run(
        [sys.executable, "-c", _SMALL, str(workdir)],
        env=clean | {"PYTHONPATH": ":".join(sys.path)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def parts(output: str) -> dict[str, float]:
    (found,) = _LINE.findall(output)
    names = ("total", "imports", "data", "initialisation", "tracing", "compilation", "step")
    return dict(zip(names, map(float, found), strict=True))


def test_compiled_programs_are_kept_in_the_workdir_and_the_start_is_said(tmp_path):
    seconds = parts(run_small(tmp_path).stdout)
    assert list((tmp_path / "compilation_cache").glob("jit_program-*"))
    assert sum(seconds.values()) == pytest.approx(2 * seconds["total"], abs=0.4)
    assert 0.3 <= seconds["data"] < 1.0 and seconds["compilation"] > 0


@pytest.mark.slow
def test_a_place_that_jax_knows_already_or_that_cannot_be_written(tmp_path):
    elsewhere = str(tmp_path / "elsewhere")
    result = run_small(tmp_path / "work", JAX_COMPILATION_CACHE_DIR=elsewhere)
    assert result.stdout.splitlines()[-1] == elsewhere
    assert not (tmp_path / "work").exists()
    (tmp_path / "file").touch()
    assert parts(run_small(tmp_path / "file").stdout)["compilation"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_second_start_of_a_training_is_faster(tiny_config, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    tiny_config.frozen.random = True
    tiny_config.stages = (0, 4)
    tiny_config.generator.training.epochs = 1 / 22
    seconds = []
    for epochs in (1 / 22, 2 / 22):
        tiny_config.tokenizer.training.epochs = epochs
        result = run(command(tiny_config, tmp_path), env=environment)
        assert result.returncode == 0, result.stderr
        seconds.append(parts(result.stdout))
        assert "cpu_aot" not in result.stderr and "Traceback" not in result.stderr
    first, second = seconds
    assert second["compilation"] < first["compilation"] / 2
    assert second["total"] < first["total"]
    assert sum(first.values()) == pytest.approx(2 * first["total"], abs=0.4)
