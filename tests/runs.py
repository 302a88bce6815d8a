"""Short trainings by the command line, and what they end with."""

import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

STEPS = 20  # Of each training.


def short(config: ConfigDict) -> ConfigDict:
    """A tiny config with STEPS steps of each training and a checkpoint every four.

    It paints only two stages, since every process traces each of them anew.
    """
    config.stages = (0, 4)
    for training in (config.tokenizer.training, config.generator.training):
        training.batch_size = 4
        training.epochs = STEPS / 359  # Steps of an epoch of 1,437 images.
        training.checkpoint_every = 4
        training.log_every = 10
        training.image_every = 1000
    return config


def command(config, workdir) -> list[str]:
    """The command line of `config`, which is the digits config with a few changes."""
    changes = {
        "data.data_dir": config.data.data_dir,
        "data.image_size": config.data.image_size,
        "data.resize_ratio": config.data.resize_ratio,
        "frozen.random": config.frozen.random,
        "stages": config.stages,
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


def run(arguments: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, capture_output=True, text=True, check=False, **options)


def state_at(workdir, name: str, step: int) -> dict:
    """All arrays of a checkpoint: the optimizer, the average and the discriminator included."""
    items = {}
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        for item in ("state", "ema"):
            path = epath.Path(workdir) / name / "checkpoints" / str(step) / item
            tree = handler.metadata(path).tree
            # There may be other devices here than where it was saved.
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            items[item] = checkpointer.restore(
                path, args=ocp.args.PyTreeRestore(restore_args=as_numpy)
            )
    return {**items["state"], "ema": items["ema"]}


def final_states(workdir) -> dict:
    return {name: state_at(workdir, name, STEPS) for name in ("tokenizer", "generator")}


def assert_same(workdir, expected: dict) -> None:
    jax.tree.map(np.testing.assert_array_equal, final_states(workdir), expected)
