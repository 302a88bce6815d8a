"""The jobs of the command line, as functions of a config and a working directory.

A working directory holds `config.json`; `tokenizer/` and `generator/` with checkpoints, summaries
and pictures; and what the jobs write: `samples/`, `control/`, `edited/`, `reconstructions/`,
each with `-2`, `-3`, ... beside it where the job was run more often; `evaluation.json` with its
pictures in `evaluation/`, the `classifier/` and `reference.npz` it uses; `token_cache/`, `export/`.
A training locks it by the file `lock`.
"""

from nvg_jax.jobs.compilation import compile
from nvg_jax.jobs.control import control
from nvg_jax.jobs.editing import edit
from nvg_jax.jobs.evaluation import evaluate
from nvg_jax.jobs.generation import generate, requested_classes, sample, sampling_settings
from nvg_jax.jobs.model import Model, export, load_model
from nvg_jax.jobs.reconstruction import reconstruct
from nvg_jax.jobs.tokenization import tokenize
from nvg_jax.jobs.training import train

__all__ = [
    "Model",
    "compile",
    "control",
    "edit",
    "evaluate",
    "export",
    "generate",
    "load_model",
    "reconstruct",
    "requested_classes",
    "sample",
    "sampling_settings",
    "tokenize",
    "train",
]
