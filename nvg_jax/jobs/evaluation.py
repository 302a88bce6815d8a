"""The job `evaluate`: how good a model is, in numbers."""

from __future__ import annotations

import functools
import json
import logging
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvg_jax import keys, sharding
from nvg_jax.evaluation import metric, reference, small_classifier
from nvg_jax.evaluation.archive import Samples, load_samples, save_samples
from nvg_jax.frozen.weights import Frozen
from nvg_jax.generator.sampler import Given
from nvg_jax.jobs.generation import collect, generate, requested_classes, sampling_settings
from nvg_jax.jobs.job import job
from nvg_jax.jobs.model import Model, frozen_network, load_model, output_directory

log = logging.getLogger(__name__)


@job
def evaluate(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Measures what `config.evaluation.metrics` names, prints it and writes `evaluation.json`.

    The metrics are those of `evaluation.metric`. The samples are new ones, which are kept, or those
    of `config.evaluation.samples`. The file also says what was measured: the dataset, the split,
    the samples and the network that looked at them. Mistakes, which are UserErrors, are found
    before anything is measured.
    """
    path, settings = config.evaluation.samples, config.evaluation
    samples = load_samples(path, config.data.image_size) if path else None
    metrics = metric.choose(config, samples)
    needs = frozenset().union(*(m.needs for m in metrics))
    given_reference = reference.given(config, needs)
    new_samples = not path and any(m.least_samples for m in metrics)
    generates = new_samples or "generator" in needs
    class_ids = requested_classes(config, settings.num_samples) if generates else None
    mesh = sharding.create_mesh(config.mesh)
    with jax.set_mesh(mesh):
        model = load_model(config, workdir, with_generator=generates)
        networks = _networks(config, workdir, mesh, needs)
        make = functools.partial(_generate, config, model)
        if new_samples:
            samples = Samples(make(class_ids, "evaluation samples"), class_ids)
            if jax.process_index() == 0:
                save_samples(output_directory(workdir, "evaluation") / "samples.npz", samples)
                log.info("wrote the samples that are measured: %s/evaluation/samples.npz", workdir)
        resources = metric.Resources(
            config,
            workdir,
            mesh,
            model.tokenizer,
            model.tokenizer_variables,
            needs,
            networks,
            make,
            given_reference,
            samples,
        )
        results = metric.measure(metrics, resources)
    for name, value in results.items():
        shown = " ".join(f"{v:.3f}" for v in np.atleast_1d(value))
        print(f"{name:>26}  {shown}")
    results["measured"] = {
        "dataset": config.data.dataset,
        "split": config.data.eval_split,
        "samples": path or settings.num_samples,
        "features": settings.features if "features" in needs else None,
        "random_frozen_weights": config.frozen.random,
    }
    if jax.process_index() == 0:
        path = epath.Path(workdir) / "evaluation.json"
        path.write_text(json.dumps(results, indent=2) + "\n")
        log.info("wrote %s", path)
    return results


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
) -> np.ndarray:
    """Images of class ids; their random numbers are those of a purpose."""
    settings, batch_size = sampling_settings(config), config.sampling.batch_size
    seed = keys.named(config.seed, purpose)
    batches = generate(model, settings, class_ids, batch_size, seed, given, quiet)
    return collect(batches, len(class_ids))
