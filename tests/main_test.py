"""The command line as a user sees it: real processes, their output and exit codes."""

import subprocess
import sys

import pytest

CONFIG = "--config=configs/nvg_digits.py"


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "nvg_jax.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([CONFIG, "--config.generator.modle.depth=3"], "unknown config key 'modle'"),
        ([CONFIG, "--config.sampling.flow_step=3"], "unknown config key 'flow_step'"),
        ([CONFIG, "--config.seed=many"], "config.seed"),
        ([CONFIG, "--job=paint"], "job"),
        (["--config=configs/nvg_d13.py"], "configs/nvg_d13.py"),
        ([CONFIG, "--config.data.image_size=12"], "not a power of two"),
        ([CONFIG, "--config.data.data_dir=/nowhere"], "nvg_jax.data.prepare digits"),
        ([CONFIG, "--job=sample", "--config.sampling.classes=(11,)"], "less than 10"),
        ([CONFIG, "--job=control"], "needs a reference image"),
        ([CONFIG, "--job=evaluate", "--config.evaluation.metrics=('fit',)"], "has to be 'psnr', "),
    ],
)
def test_a_mistake_is_one_line_and_a_non_zero_exit(arguments, expected, tmp_path):
    result = run(*arguments, f"--workdir={tmp_path}")
    assert result.returncode != 0
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ") and expected in lines[0]


def test_workdir_is_required():
    result = run(CONFIG)
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert "--workdir" in result.stderr
