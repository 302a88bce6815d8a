"""Trains and measures variants of a config, over seeds, and prints their table.

    python -m benchmarks.experiments --config=configs/nvg_digits.py --workdir=runs/experiments \\
      --names=clusterings --seeds=0,1,2 --output=runs/experiments/digits.csv

Each variant and seed has a directory of its own in the workdir, in which a training that was
stopped goes on. The numbers are those of `config.evaluation.metrics` that are single ones. Rows
that the file holds are not measured again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from benchmarks import rows
from nvg_jax import cli, jobs, startup
from nvg_jax.clustering import CLUSTERINGS
from nvg_jax.configs import small
from nvg_jax.errors import UserError
from nvg_jax.tokenizer.model import build_tokenizer

log = logging.getLogger(__name__)


def _every(step: int) -> Callable[[int], tuple[int, ...]]:
    """Stage 0, and every so-many-th up to the last."""
    return lambda last_stage: tuple(sorted({0, *range(last_stage, 0, -step)}))


KEYS = ("experiment", "variant", "seed")
TITLES = {"experiment": "experiment", "variant": "variant"}
OF_ALL_METHODS = ("rfid", "fid", "precision_recall", "class_agreement", "diversity")

# What each variant of an experiment changes in the config; of stages it depends on the last one.
EXPERIMENTS: dict[str, dict[str, Mapping[str, Any]]] = {
    "clusterings": {name: {"tokenizer.model.clustering": name} for name in CLUSTERINGS},
    "switches": {  # The paper's Table 3.
        "full": {},
        "no structure RoPE": {"generator.model.structure_rope": False},
        "tokens directly": {"generator.model.predict_final_canvas": False},
        "noised canvas": {"generator.model.noised_canvas": True},
        "structure from pure noise": {"generator.model.known_structure": False},
        "drawn halves": {"sampling.gumbel_split": True},
    },
    "structure": {
        f"{name}, {steps} step(s)": {
            "generator.model.structure": name,
            "sampling.flow_steps": steps,
            "sampling.structure_stages": (),
        }
        for name, numbers in (("flow", (25, 2, 1)), ("mean_flow", (4, 2, 1)), ("masked", (8, 2, 1)))
        for steps in numbers
    },
    "methods": {
        name: changes | {"method": name, "evaluation.metrics": OF_ALL_METHODS}
        for name, changes in ({"nvg": {}} | small.BASELINES).items()
    },
    "guidance": {
        "two passes": {},
        "content's as an input": {"generator.model.guided_content": True},
    },
    "stages of an image": {
        f"every {stride}": {"generator.training.stage_stride": stride} for stride in (1, 2, 4)
    },
    "ladders": {
        "all stages": {},
        "every second": {"stages": _every(2)},
        "every fourth": {"stages": _every(4)},
        "from 2^2 on": {"stages": lambda last_stage: tuple(range(2, last_stage + 1))},
    },
}


def changes_of(config: ConfigDict, name: str, variant: str) -> dict[str, Any]:
    """What a variant of an experiment changes in a config."""
    return {
        key: value(build_tokenizer(config).last_stage) if callable(value) else value
        for key, value in EXPERIMENTS[name][variant].items()
    }


def run(
    config: ConfigDict, workdir: str, output: str, names: Sequence[str], seeds: Sequence[str]
) -> list[rows.Row]:
    """Trains and measures what `output` does not hold of the experiments, and adds it there.

    Returns the rows of all that were asked for. UserError: an unknown experiment or a bad seed.
    """
    for name in names:
        if name not in EXPERIMENTS:
            known = ", ".join(EXPERIMENTS)
            raise UserError(f"--names={name} is no experiment: choose among {known}")
    if bad := [seed for seed in seeds if not seed.isdecimal()]:
        raise UserError(f"--seeds={','.join(bad)}: whole numbers only")
    done = rows.load(output, KEYS)
    wanted = [
        (name, variant, seed) for seed in seeds for name in names for variant in EXPERIMENTS[name]
    ]
    for key in wanted:
        if key in done:
            continue
        name, variant, seed = key
        changed, changes = config.copy_and_resolve_references(), changes_of(config, name, variant)
        changed.update_from_flattened_dict(changes)
        changed.seed = int(seed)
        directory = f"{workdir}/{_trained(changes)}-{seed}"
        jobs.train(changed, directory)
        found = jobs.evaluate(changed, directory)
        row = dict(zip(KEYS, key, strict=True))
        row |= {x: f"{value:.6g}" for x, value in found.items() if isinstance(value, float)}
        rows.add(output, done, row, len(KEYS))
        log.info(", ".join(f"{name} {value}" for name, value in row.items()))
    return [done[key] for key in wanted]


def _trained(changes: Mapping[str, Any]) -> str:
    """A directory's name, which variants share whose trainings are the same."""
    parts = (
        f"{key.rpartition('.')[2]}={x}".replace(" ", "")
        for key, x in changes.items()
        if not key.startswith(("sampling.", "evaluation."))
    )
    return "-".join(sorted(parts)) or "as_configured"


def main() -> None:
    given = flags.FLAGS
    startup.start(given.workdir)
    found = run(given.config, given.workdir, given.output, given.names, given.seeds)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {len(given.seeds)} seed(s)")
    print(rows.summary(found, TITLES, KEYS))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "What the variants change.")
    flags.DEFINE_string("workdir", None, "A directory for all trainings.")
    flags.DEFINE_string("output", None, "A CSV file, which is added to.")
    flags.DEFINE_list("names", None, f"Of {', '.join(EXPERIMENTS)}.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Of training and samples.")
    flags.mark_flags_as_required(["config", "workdir", "output", "names"])
    cli.run(main)
