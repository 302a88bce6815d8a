"""What every job begins with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, TypeVar

from ml_collections import ConfigDict
from pydantic import Field

from nvg_jax import allowed, files, pretrained
from nvg_jax.distributed import agreed
from nvg_jax.errors import UserError
from nvg_jax.evaluation.metric import METRICS
from nvg_jax.generator.model import CHOICES
from nvg_jax.jobs.method import METHODS, check_baseline

P, R = ParamSpec("P"), TypeVar("R")


def job(run: Callable[Concatenate[ConfigDict, str, P], R]) -> Callable[..., R]:
    """A job that looks at its whole config before anything else, and whether it can write.

    UserError for what is wrong, on all processes.
    """
    return _checked(run, files.usable_workdir)


def reading_job(run: Callable[Concatenate[ConfigDict, str, P], R]) -> Callable[..., R]:
    """As `job`, but one that need not write to its workdir."""
    return _checked(run, files.readable_workdir)


def _checked(
    run: Callable[Concatenate[ConfigDict, str, P], R], look_at: Callable[[str], str]
) -> Callable[..., R]:
    @functools.wraps(run)
    def checked(config: ConfigDict, workdir: str, *args: P.args, **kwargs: P.kwargs) -> R:
        check(config, run.__name__)
        problem = ""
        try:
            workdir = look_at(workdir)
        except UserError as error:
            problem = str(error)
        if problem := agreed(problem):
            raise UserError(problem)
        return run(config, workdir, *args, **kwargs)

    return checked


def check(config: ConfigDict, job: str = "") -> None:
    """UserError, in one line, for values that are not allowed or do not go together.

    job: by its name, if it is for one.
    """
    allowed.check(
        config,
        "config",
        CHOICES
        | class_bounds(config.data.num_classes)
        | {
            "method": Literal[tuple(METHODS)],
            "evaluation.metrics": tuple[Literal[tuple(METRICS)], ...],
        },
    )
    if config.pretrained:
        pretrained.folder(config.pretrained, config.frozen.directory)
    if config.method != "nvg":
        check_baseline(config, job)
    # Its sizes go together with those of the tokenizer.
    sizes = METHODS[config.method].build_generator(config).sizes
    if config.method != "nvg":
        return
    with_structure = Annotated[int, Field(ge=0, lt=max(sizes.last_stage - 1, 1))]
    given = Annotated[int, Field(ge=0, le=sizes.last_stage + 1)]
    bounds = {
        "sampling.structure_stages": tuple[with_structure, ...],
        "structure_gap.stages": tuple[given, ...],
        "structure_stability.shifts": tuple[Annotated[int, Field(ge=0, lt=sizes.grid[1])], ...],
    }
    allowed.check(config, "config", bounds)
    if sizes.ladder and set(config.sampling.structure_stages) - set(sizes.splits):
        raise UserError(
            f"config.sampling.structure_stages={config.sampling.structure_stages}: with config."
            f"stages={sizes.stages} the structure generator runs at {tuple(sizes.splits)}: choose "
            "among these"
        )


def class_bounds(num_classes: int) -> dict[str, Any]:
    """What a model with so many classes can be asked for, as `allowed.check` takes it."""
    return {
        "sampling.classes": tuple[Annotated[int, Field(ge=0, lt=num_classes)], ...],
        "edit.class_id": Annotated[int, Field(ge=-1, lt=num_classes)],
    }
