"""The job `evaluate`: how good a model is, in numbers."""

from __future__ import annotations

import datetime
import functools
import json
import logging
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvg_jax import files, keys, sharding
from nvg_jax.evaluation import metric, reference, small_classifier
from nvg_jax.evaluation.archive import Samples, load_samples, save_samples
from nvg_jax.frozen.weights import Frozen
from nvg_jax.generator.given import Given, Kept
from nvg_jax.jobs.generation import collect, generate, requested_classes, sampling_settings
from nvg_jax.jobs.job import job
from nvg_jax.jobs.model import Model, frozen_network, load_model

log = logging.getLogger(__name__)


@job
def evaluate(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Measures what `config.evaluation.metrics` names, prints it and writes `evaluation.json`.

    The metrics are those of `evaluation.metric`. The samples are new ones, which are kept, or those
    of `config.evaluation.samples`. The file keeps what was measured before and not now, and its
    `measured` says of each number when and on what: the dataset, the split, the samples, the
    weights and the network that looked at them. Mistakes, which are UserErrors, are found before
    anything is measured. Returns what was measured now.
    """
    path, settings = config.evaluation.samples, config.evaluation
    samples = load_samples(path, config.data.image_size) if path else None
    metrics = metric.choose(config, samples)
    needs = frozenset().union(*(m.needs for m in metrics))
    given_reference = reference.given(config, needs)
    new_samples = not path and any(m.least_samples for m in metrics)
    generates = new_samples or "generator" in needs
    class_ids = requested_classes(config, settings.num_samples) if generates else None
    with jax.set_mesh(sharding.create_mesh(config.mesh)):
        model = load_model(config, workdir, with_generator=generates)
        resources = resources_of(config, workdir, model, needs, given_reference)
        if new_samples:
            samples = Samples(resources.generate(class_ids, "evaluation samples"), class_ids)
            if jax.process_index() == 0:
                path = files.free_name(f"{workdir}/evaluation/samples.npz")
                save_samples(path, samples)
                log.info("wrote the samples that are measured: %s", path)
        resources.samples = samples
        found = metric.measure(metrics, resources)
    results, measured = {}, {}
    for each, numbers in zip(metrics, found, strict=True):
        results |= numbers
        measured |= dict.fromkeys(numbers, _measured_on(config, each, model, samples, str(path)))
    for name, value in results.items():
        shown = " ".join(f"{v:.3f}" for v in np.atleast_1d(value))
        print(f"{name:>26}  {shown}", flush=True)
    if jax.process_index() == 0:
        _write(epath.Path(workdir) / "evaluation.json", results, measured)
    return results | {"measured": measured}


def resources_of(
    config: ConfigDict,
    workdir: str,
    model: Model,
    needs: frozenset[str],
    given_reference: reference.Reference | None = None,
) -> metric.Resources:
    """What metrics with these needs may ask for, of a model on its devices; no samples yet."""
    return metric.Resources(
        config,
        workdir,
        model.mesh,
        model.tokenizer,
        model.tokenizer_variables,
        needs,
        _networks(config, workdir, model.mesh, needs),
        functools.partial(_generate, config, model),
        given_reference,
    )


def _measured_on(
    config: ConfigDict, each: metric.Metric, model: Model, samples: Samples | None, path: str
) -> dict[str, Any]:
    """When a metric was measured, and on what."""
    settings, needs = config.evaluation, each.needs
    about = {"time": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"}
    about |= {"dataset": config.data.dataset}
    if "split" in each.streams:
        about |= {"split": config.data.eval_split, "tokenizer": model.sources["tokenizer"]}
    if each.least_samples:
        about |= {"samples": path, "num_samples": len(samples.images)}
    if "generator" in needs or (each.least_samples and not settings.samples):
        about |= model.sources
    if "reference" in needs:
        about |= {"reference": settings.reference or config.data.train_split}
    if "features" in needs:
        about |= {"features": settings.features}
    if needs & {"features", "lpips"}:
        about |= {"random_frozen_weights": config.frozen.random}
    return about | each.about


def _write(path: epath.Path, results: dict[str, Any], measured: dict[str, Any]) -> None:
    """Adds to the file what was measured now. One that cannot be read is put aside."""
    try:
        before = json.loads(path.read_text()) if path.exists() else {}
        about = before.pop("measured", {})
        if "dataset" in about:  # Once it was the same for all.
            about = dict.fromkeys(before, about)
        results, measured = before | results, about | measured
    except (OSError, ValueError, AttributeError, TypeError) as error:
        aside = files.free_name(f"{path}.damaged")
        path.rename(aside)
        log.warning("%s cannot be read (%s): it is now %s", path, error, aside)
    files.write_text(path, json.dumps(results | {"measured": measured}, indent=2) + "\n")
    log.info("wrote %s", path)


def _networks(
    config: ConfigDict, workdir: str, mesh: Mesh, needs: frozenset[str]
) -> dict[str, Frozen]:
    """The networks that are needed: 'lpips', and 'features', which the config names."""
    networks, name = {}, config.evaluation.features
    if "lpips" in needs:
        networks["lpips"] = frozen_network(config, "lpips")
    if "features" in needs and name == "classifier":
        networks["features"] = small_classifier.trained(config, workdir, mesh)
    elif "features" in needs:
        networks["features"] = frozen_network(config, name)
    return networks


def _generate(
    config: ConfigDict,
    model: Model,
    class_ids: np.ndarray,
    purpose: str,
    given: Given | None = None,
    quiet: bool = False,
    kept: Kept | None = None,
) -> np.ndarray:
    """Images of class ids; their random numbers are those of a purpose."""
    settings, batch_size = sampling_settings(config), config.sampling.batch_size
    seed = keys.named(config.seed, purpose)
    batches = generate(model, settings, class_ids, batch_size, seed, given, quiet, kept)
    return collect(batches, len(class_ids))
