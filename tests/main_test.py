"""The command line as a user sees it: real processes, their output and exit codes."""

import signal
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
        (
            ["--config=configs/nvg_d13.py"],
            "no config configs/nvg_d13.py: name a file or flow_digits, ",
        ),
        (["--config=nvg_d13"], "no config nvg_d13: name a file or flow_digits, flow_fashion, nvg_"),
        (["--config", "nvg_digits", "--config.data.image_size=12"], "not a power of two"),
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


@pytest.mark.parametrize(
    "workdir", ["", " ", __file__, "/proc/run", "/dev/null", "x" * 300, "a://b"]
)
def test_a_workdir_that_cannot_be_used_is_refused_at_once(workdir):
    result = run(CONFIG, f"--workdir={workdir}")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and ("cannot be written" in line or "no directory" in line)


@pytest.mark.parametrize(
    ("program", "number", "module", "code", "words"),
    [
        ("main", signal.SIGINT, "logging", 130, "stopped by Ctrl-C"),
        ("main", signal.SIGTERM, "jaxlib", 143, "stopped by SIGTERM: nothing has been saved yet"),
        ("data.prepare", signal.SIGINT, "logging", 130, "stopped by Ctrl-C"),
        ("interop.fetch", signal.SIGINT, "logging", 130, "stopped by Ctrl-C"),
        ("interop.convert", signal.SIGTERM, "jaxlib", 143, "stopped by SIGTERM"),
    ],
)
def test_a_signal_is_one_line(tmp_path, heeding_sigint, program, number, module, code, words):
    command = [sys.executable, "-X", "importtime", "-m", f"nvg_jax.{program}"]
    if program == "main":
        command += [CONFIG, f"--workdir={tmp_path}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:  # Until that module has been imported, of many.
            if line.split()[-1] == module:
                break
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    (said,) = [line for line in errors.splitlines() if not line.startswith("import time:")]
    assert said == words


_TALK = """
import sys
from nvg_jax import cli

def main():
    for _ in range(3):
        print("\u00e4" * 20_000)
    open(sys.argv[0] + ".done", "w").close()

cli.run(main)
"""


@pytest.mark.parametrize("ending", ["| head -c 1", "> /dev/full", ">&- 2>&-", "2> /dev/full <&-"])
def test_output_that_nobody_takes_ends_nothing(tmp_path, ending):
    program = tmp_path / "talk.py"
    program.write_text(_TALK)
    command = f"PYTHONPATH=. PYTHONIOENCODING=ascii {sys.executable} {program} {ending}"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stderr == ""
    assert (tmp_path / "talk.py.done").exists()
