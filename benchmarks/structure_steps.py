"""Quality and time an image of sampling, by the runs and the steps of the structure generator.

    python -m benchmarks.structure_steps --config=configs/nvg_digits.py --workdir=runs/digits \
      --output=runs/digits/structure_steps.csv --flow_steps=1,2,4,8,25 --structure_stages=all,0,0+2

The model is that of the workdir, or of `--config.pretrained`; what the numbers need, as the small
classifier, is made in the workdir. They are those of `config.evaluation.structure_gap.metrics`.
A sample has the same class and noise in all rows of a seed. Seconds are wall time of sampling and
decoding after a first batch, which compiles, and of which a picture shows ten, beside the file.
Rows that the file holds are not measured again.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from benchmarks import rows
from nvg_jax import cli, sharding, startup, visualize
from nvg_jax.errors import UserError
from nvg_jax.evaluation import metric, reference
from nvg_jax.evaluation.archive import Samples
from nvg_jax.generator.sampler import Settings
from nvg_jax.jobs.evaluation import resources_of
from nvg_jax.jobs.generation import collect, generate, requested_classes, sampling_settings
from nvg_jax.jobs.job import check, job
from nvg_jax.jobs.model import Model, load_model

log = logging.getLogger(__name__)

# What tells the rows apart, all as texts.
KEYS = ("generator", "num_samples", "structure_stages", "flow_steps", "seed")
TITLES = {"structure_stages": "structure at", "flow_steps": "steps"}


def numbers(flag: str, values: Sequence[str]) -> list[int]:
    """Of a list in a flag; UserError for anything else."""
    if not values or not all(value.isdecimal() for value in values):
        raise UserError(f"--{flag}={','.join(values)}: whole numbers only")
    return [int(value) for value in values]


def stages(name: str) -> tuple[int, ...]:
    """The stages of 'all', '0' or '0+2'."""
    return () if name == "all" else tuple(numbers("structure_stages", name.split("+")))


@job
def sweep(
    config: ConfigDict,
    workdir: str,
    output: str,
    flow_steps: Sequence[str],
    structure_stages: Sequence[str],
    seeds: Sequence[str],
    num_samples: int,
) -> list[rows.Row]:
    """Measures every combination that `output` does not hold, and adds it there at once.

    Returns the rows of all that were asked for. UserError: a value that sampling does not allow, or
    a file of something else.
    """
    settings, config = {}, config.copy_and_resolve_references()
    for steps, name in itertools.product(numbers("flow_steps", flow_steps), structure_stages):
        config.sampling.flow_steps, config.sampling.structure_stages = steps, stages(name)
        check(config)
        settings[name, str(steps)] = sampling_settings(config)
    seeds = [str(seed) for seed in numbers("seeds", seeds)]
    names = config.evaluation.structure_gap.metrics
    kinds = metric.kinds(names, num_samples).values()
    needs = frozenset().union(*(kind.needs for kind in kinds))
    given_reference = reference.given(config, needs)
    class_ids = requested_classes(config, num_samples)
    done, size = rows.load(output, KEYS), config.sampling.batch_size
    with jax.set_mesh(sharding.create_mesh(config.mesh)):
        model = load_model(config, workdir)
        resources = resources_of(config, workdir, model, needs, given_reference)
        about = (model.sources["generator"], str(num_samples))
        wanted = [(*about, *key, seed) for seed in seeds for key in settings]
        _side_by_side(model, settings, class_ids[:size], int(seeds[0]), output)
        for key in wanted:
            if key in done:
                continue
            images, seconds = _timed(model, settings[key[2:4]], class_ids, size, int(key[4]))
            found = metric.of_samples(names, resources, Samples(images, class_ids))
            found = {"seconds_per_image": seconds} | found
            row = dict(zip(KEYS, key, strict=True))
            row |= {name: f"{value:.6g}" for name, value in found.items()}
            rows.add(output, done, row, len(KEYS))
            log.info(", ".join(f"{name} {value}" for name, value in row.items()))
    return [done[key] for key in wanted]


def _side_by_side(
    model: Model,
    settings: Mapping[tuple[str, str], Settings],
    class_ids: np.ndarray,
    seed: int,
    output: str,
) -> None:
    """Writes samples of each setting, a row of them, which have the same noise in every row."""
    found = [
        _timed(model, each, class_ids, len(class_ids), seed)[0][:10] for each in settings.values()
    ]
    path = epath.Path(output).with_suffix(".png")
    visualize.save_png(path, visualize.grid(np.concatenate(found), columns=len(found[0])))
    log.info("rows of %s: %s", path, ", ".join(f"{name} {steps}" for name, steps in settings))


def _timed(
    model: Model, settings: Settings, class_ids: np.ndarray, batch_size: int, seed: int
) -> tuple[np.ndarray, float]:
    """Images, and the seconds that each took."""
    start = time.perf_counter()
    images = collect(generate(model, settings, class_ids, batch_size, seed), len(class_ids))
    return images, (time.perf_counter() - start) / len(class_ids)


def main() -> None:
    found = flags.FLAGS
    startup.start(found.workdir)
    found_rows = sweep(
        found.config,
        found.workdir,
        found.output,
        found.flow_steps,
        found.structure_stages,
        found.seeds,
        found.num_samples,
    )
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {found_rows[0]['generator']}: "
        f"{found.num_samples:,} samples of each of {len(found.seeds)} seeds"
    )
    print(rows.summary(found_rows, TITLES, KEYS))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The config of the model.")
    flags.DEFINE_string("workdir", None, "Where it was trained, or an empty directory.")
    flags.DEFINE_string("output", None, "A CSV file, which is added to.")
    flags.DEFINE_list("flow_steps", ["1", "2", "4", "8", "25"], "Steps of each run.")
    flags.DEFINE_list("structure_stages", ["all", "0", "0+2"], "Stages with a run: all, 0+2.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Of the samples.")
    flags.DEFINE_integer("num_samples", 2000, "Of each row.", lower_bound=1)
    flags.mark_flags_as_required(["config", "workdir", "output"])
    cli.run(main)
