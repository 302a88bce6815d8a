"""Training and sampling compiled ahead of time, for devices here and TPUs that are not here."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from nvg_jax import hardware, jobs, sharding
from nvg_jax.errors import UserError
from nvg_jax.generator.model import build_generator
from nvg_jax.generator.sampler import Settings, sample
from nvg_jax.jobs import compilation
from nvg_jax.jobs.compiled_sampling import Part, Run, SamplingReport, sampling_table
from nvg_jax.tokenizer import inference
from nvg_jax.tokenizer.model import build_tokenizer
from nvg_jax.training import flops


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
    assert written["architecture"] == tokenizer.architecture
    assert "memory of a device" in capsys.readouterr().out


def test_a_step_that_reads_tokens_computes_no_tokenizer(tiny_config, tmp_path):
    tiny_config.compile.topology, tiny_config.compile.tasks = "local", ("generator",)
    tiny_config.stages, needed = (0, 4), []
    for cache in ("", str(tmp_path / "cache")):
        tiny_config.token_cache.directory = cache
        (report,) = jobs.compile(tiny_config, str(tmp_path))
        needed.append(report.needed_flops)
    assert needed[1] < 0.99 * needed[0]
    tiny_config.generator.training.repa.weight = 0.5
    with pytest.raises(UserError, match="REPA needs images, which a token cache does not hold"):
        jobs.compile(tiny_config, str(tmp_path))


def test_the_table_says_what_does_not_fit_and_what_bounds_the_step():
    report = compilation.Report(
        task="generator",
        architecture="generator(depth 16)",
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


def _sampling(config, workdir, flow_steps, batch_size):
    config.compile.topology, config.compile.tasks = "local", ("sample",)
    config.sampling.batch_size, config.sampling.flow_steps = batch_size, flow_steps
    (report,) = jobs.compile(config, str(workdir))
    return report


def test_parts_of_sampling_are_what_sampling_takes(tiny_config, tmp_path):
    """By the arithmetic of the whole, traced as one program."""
    report = _sampling(tiny_config, tmp_path, flow_steps=2, batch_size=4)
    tokenizer, generator = build_tokenizer(tiny_config), build_generator(tiny_config)
    settings = Settings.from_config(tiny_config.sampling)
    variables = [
        sharding.unnamed(jax.eval_shape(model.init_variables, jax.random.key(0)))
        for model in (tokenizer, generator)
    ]

    def images(variables):
        class_id, keys = jnp.zeros(4, jnp.int32), jax.random.split(jax.random.key(0), 4)
        sequence = sample(tokenizer, generator, settings, *variables, class_id, keys)
        return inference.images_of(tokenizer, variables[0], sequence)

    one, four = report.runs
    assert (one.batch_size, four.batch_size) == (1, 4) and one.fits and four.fits
    whole = flops.count(jax.make_jaxpr(images)(variables))
    assert sum(part.flops for part in four.parts.values()) == whole
    assert report.weights == sum(4 * leaf.size for leaf in jax.tree.leaves(variables))
    assert report.weights < one.memory < four.memory
    assert four.seconds is None  # Nobody publishes what this machine can do.


def test_twice_the_flow_steps_are_twice_the_structure(tiny_config, tmp_path, capsys):
    tiny_config.stages = (0, 4)
    reports = [_sampling(tiny_config, tmp_path, steps, batch_size=1) for steps in (2, 4, 8)]
    two, four, eight = (report.runs[-1].parts for report in reports)
    assert four["structure"].flops == 2 * two["structure"].flops
    assert eight["structure"].flops == 2 * four["structure"].flops
    # Memory is also needed around the loop.
    moved = [parts["structure"].memory_bytes for parts in (two, four, eight)]
    assert moved[2] - moved[1] == 2 * (moved[1] - moved[0]) > 0
    for name in ("content", "decoder"):
        assert two[name] == four[name] == eight[name]
    assert "8 in each run" in capsys.readouterr().out


def test_the_table_of_sampling_says_what_bounds_it_and_what_does_not_fit():
    parts = {
        "content": Part(2e12, 5e9, 0.05),
        "structure": Part(40e12, 9e9, 0.4),
        "decoder": Part(1e12, 1e9, 0.05),
    }
    report = SamplingReport(
        task="sample",
        architecture="generator(depth 16)",
        topology="v5e:2x2",
        device="TPU v5 lite",
        flow_steps=25,
        weights=2**30,
        limit=16 * 2**30,
        runs=[Run(8, 17 * 2**30, False, {}), Run(4, 3 * 2**30, True, parts)],
    )
    text = sampling_table(report)
    for expected in (
        "one TPU v5 lite (v5e:2x2)",
        "25 in each run",
        "memory 17 GiB of 16 GiB: DOES NOT FIT",
        "memory 3 GiB of 16 GiB: fits",
        "at least 500 ms, 8 images/s",
        "at least 400 ms, 40 TFLOP, 9 GB of traffic",
    ):
        assert expected in text, expected


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"topology": "v5e:17x3"}, "config.compile.topology='v5e:17x3'"),
        ({"topology": "local", "tasks": ("both",)}, "'both',.: it has to be 'tokenizer', 'gen"),
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
        *("--config.stages=(0,4)", "--config.compile.largest_batch=False"),
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
