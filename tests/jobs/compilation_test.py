"""Training steps compiled ahead of time, for devices that are here and for TPUs that are not."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from nvg_jax import hardware, jobs, sharding
from nvg_jax.errors import UserError
from nvg_jax.jobs import compilation
from nvg_jax.tokenizer.model import build_tokenizer


def test_a_step_for_the_devices_of_this_machine(tiny_config, tmp_path, capsys):
    config = tiny_config
    config.compile.topology, config.compile.tasks = "local", ("tokenizer",)
    (report,) = jobs.compile(config, str(tmp_path))

    tokenizer = build_tokenizer(config)
    shapes = jax.eval_shape(tokenizer.init_variables, jax.random.key(0))
    shapes = sharding.unnamed(shapes)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    # Parameters, their average and two moments, the average's canvas scales; step counters.
    scales = tokenizer.last_stage + 2
    assert 0 <= report.state - 4 * (4 * count + scales) <= 32
    assert report.memory > report.state
    assert report.needed_flops == report.executed_flops > 6 * count * config.data.image_size
    assert report.num_steps == 6  # Of the prepared digits.
    # Nothing is made up for devices whose figures nobody publishes.
    assert report.seconds is None and report.limit is None and report.largest_batch_size is None

    (written,) = json.loads((tmp_path / "compile.json").read_text())
    assert written["memory"] == report.memory and written["task"] == "tokenizer"
    assert "memory of a device" in capsys.readouterr().out


def test_the_table_says_what_does_not_fit_and_what_bounds_the_step():
    report = compilation.Report(
        task="generator",
        topology="v5e:4x4",
        device="16 x TPU v5 lite",
        mesh={"data": 4, "fsdp": 4, "tensor": 1},
        batch_size=64,
        microbatches=2,
        largest_batch_size=48,
        memory=17 * 2**30,
        state=2 * 2**30,
        limit=hardware.CHIPS["TPU v5 lite"].memory,
        needed_flops=100e12,
        executed_flops=120e12,
        traffic=compilation.hlo.Traffic(4e9, {"all-reduce": compilation.hlo.Collective(3, 2e9)}),
        seconds={"compute": 0.5, "memory": 0.25, "collectives": 0.01},
        num_steps=86_400,
    )
    assert not report.fits and report.step_seconds == 0.5
    text = compilation.table(report)
    for expected in (
        "17 GiB of 16 GiB: DOES NOT FIT",
        "100 TFLOP a step, 120 TFLOP with",
        "4 GB\n",
        "64: 2 image(s) a device at once, 2 part(s)",
        "48, 3 a device",
        "3 times, 2 GB received",
        "at least 500 ms, 128 images/s",
        "at most 83%",
        "at least 12 hours",
    ):
        assert expected in text, expected


@pytest.mark.parametrize(
    ("show", "value", "expected"),
    [
        (compilation._memory, 0, "0 B"),
        (compilation._memory, 1023, "1,023 B"),
        (compilation._memory, 5.5 * 2**20, "5.5 MiB"),
        (compilation._traffic, 419.7e9, "420 GB"),
        (compilation._flops, 4.21e6, "4.21 MFLOP"),
        (compilation._flops, 10_908e12, "10,908 TFLOP"),
        (compilation._time, 2.5e-7, "0.25 us"),
        (compilation._time, 0.0382, "38.2 ms"),
        (compilation._time, 3.459 * 86_400, "3.46 days"),
    ],
)
def test_numbers_have_units_that_fit(show, value, expected):
    assert show(value) == expected


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"topology": "v5e:17x3"}, "config.compile.topology='v5e:17x3'"),
        ({"topology": "local", "tasks": ("both",)}, "'both',.: it has to be 'tokenizer' or"),
    ],
)
def test_mistakes_are_one_clear_line(tiny_config, tmp_path, changes, message):
    tiny_config.compile.update(changes)
    with pytest.raises(UserError, match=message):
        jobs.compile(tiny_config, str(tmp_path))


@pytest.mark.slow
def test_a_step_for_tpus_that_are_not_there(tmp_path):
    """The command, on the digits: a full mesh of 16 chips."""
    pytest.importorskip("libtpu", reason="compiles for TPUs")
    command = [
        sys.executable,
        *("-m", "nvg_jax.main", "--config=configs/nvg_digits.py", f"--workdir={tmp_path}"),
        *("--job=compile", "--config.compile.topology=v5e:4x4", "--config.mesh.fsdp=4"),
        *("--config.mesh.tensor=2", "--config.compile.tasks=('generator',)"),
        "--config.generator.model.structure_heads=2",
        "--config.generator.model.structure_width=64",
        "--config.compile.largest_batch=False",
    ]
    done = subprocess.run(
        command,
        cwd=pathlib.Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (report,) = json.loads((tmp_path / "compile.json").read_text())
    assert report["device"] == "16 x TPU v5 lite"
    assert report["mesh"] == {"data": 2, "fsdp": 4, "tensor": 2}
    moved = report["traffic"]["collectives"]
    # Parameters are gathered from those that share them, gradients added up over everybody.
    assert moved["all-gather"]["bytes"] > 0
    assert sum(moved[kind]["bytes"] for kind in moved if "reduce" in kind) > 0
    assert report["state"] < report["memory"] < report["limit"]
    assert report["largest_batch_size"] is None
    assert 0 < max(report["seconds"].values()) < 1
    assert "fits" in done.stdout and "utilisation" in done.stdout
