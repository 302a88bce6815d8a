"""What each method is made of, by the name that `config.method` gives it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from nvg_jax.baselines.flow.generator import FlowGenerator, FlowTask, build_flow_generator
from nvg_jax.baselines.flow.tokenizer import build_autoencoder
from nvg_jax.baselines.var.generator import VarGenerator, build_var_generator
from nvg_jax.baselines.var.tokenizer import build_pyramid_tokenizer
from nvg_jax.baselines.var.training import VarTask
from nvg_jax.errors import UserError
from nvg_jax.generator.model import Generator, build_generator
from nvg_jax.generator.training import GeneratorTask
from nvg_jax.tokenizer.model import Tokenizer, build_tokenizer

AnyGenerator = Generator | VarGenerator | FlowGenerator


class Method(NamedTuple):
    """What tokenizes and what generates, from a whole run's config, and the task that trains it.

    The task samples as well.
    """

    build_tokenizer: Callable[[ConfigDict], Tokenizer]
    build_generator: Callable[[ConfigDict], AnyGenerator]
    task: type[GeneratorTask]


METHODS = {
    "nvg": Method(build_tokenizer, build_generator, GeneratorTask),
    "var": Method(build_pyramid_tokenizer, build_var_generator, VarTask),
    "flow": Method(build_autoencoder, build_flow_generator, FlowTask),
}

# What only the paper's method has: jobs, metrics, and values that have to be left as they are.
OWN_JOBS = ("tokenize", "control", "edit", "compile")
OWN_METRICS = ("structure_miou", "segments", "guided_iou", "variation", "structure_gap")
OWN_METRICS += ("structure_stability", "edited")
OF_TOKENS = ("codebook_usage",)
OWN_VALUES = {
    "stages": (),
    "pretrained": "",
    "token_cache.directory": "",
    "tokenizer.model.clustering": "greedy",
    "generator.model.attention": "xla",
    "generator.model.guided_content": False,
    "generator.model.structure": "flow",
    "generator.model.noised_canvas": False,
    "generator.model.known_structure": True,
    "generator.model.structure_rope": True,
    "generator.model.predict_final_canvas": True,
    "generator.training.stage_stride": 1,
    "generator.training.repa.weight": 0.0,
    "control.structure": "",
    "control.reference": "",
    "control.stages": 0,
    "sampling.gumbel_split": False,
}


def check_baseline(config: ConfigDict, job: str = "") -> None:
    """UserError for what a baseline is asked for and has not: a job, metrics or other values."""
    if job in OWN_JOBS:
        raise UserError(f"the job {job} is of the method nvg: config.method is {config.method}")
    lacking = OWN_METRICS + OF_TOKENS * (config.method == "flow")
    if found := [name for name in config.evaluation.metrics if name in lacking]:
        raise UserError(
            f"{', '.join(found)} of config.evaluation.metrics need what config.method="
            f"{config.method} has not: take them out"
        )
    for name, wanted in OWN_VALUES.items():
        value = functools.reduce(getattr, name.split("."), config)
        value = tuple(value) if isinstance(value, list) else value  # As JSON has it.
        if value != wanted:
            raise UserError(
                f"config.{name}={value!r} is for the method nvg: leave it {wanted!r} with "
                f"config.method={config.method}"
            )
