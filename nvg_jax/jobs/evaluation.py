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
from nvg_jax.errors import UserError
from nvg_jax.evaluation import metric, reference, small_classifier, streams
from nvg_jax.evaluation.archive import Samples, load_samples, save_samples
from nvg_jax.frozen.weights import Frozen
from nvg_jax.generator.sampler import Given
from nvg_jax.jobs.generation import collect, generate, requested_classes, sampling_settings
from nvg_jax.jobs.model import Model, frozen_network, load_model, output_directory

log = logging.getLogger(__name__)


def evaluate(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Measures what `config.evaluation.metrics` names, prints it and writes `evaluation.json`.

    There is one pass over `config.data.eval_split` and one over the samples, which are new ones or
    those of `config.evaluation.samples`. The metrics are described in `evaluation.metric`; with
    `config.evaluation.num_samples` 0 those of the generator are left out. The file also says what
    was measured: the dataset, the split, the samples and the network that looked at them.

    Raises:
      UserError: what `metric.choose`, the metrics and the files raise; mistakes are found before
        anything is measured.
    """
    path, settings = config.evaluation.samples, config.evaluation
    samples = load_samples(path, config.data.image_size) if path else None
    metrics = metric.choose(config, samples)
    needs = frozenset().union(*(m.needs for m in metrics))
    given_reference = reference.given(config, needs)
    new_samples = not path and any(m.least_samples for m in metrics)
    generates = new_samples or "generator" in needs
    if generates:
        requested_classes(config, 1)
    mesh = sharding.create_mesh(config.mesh)
    with jax.set_mesh(mesh):
        model = load_model(config, workdir, with_generator=generates)
        networks = _networks(config, workdir, mesh, needs)
        if new_samples:
            samples = _new_samples(config, workdir, model)
        looking = {
            stream: [m for m in metrics if stream in m.streams] for stream in ("split", "samples")
        }
        seeing = (model.tokenizer, model.tokenizer_variables, networks)
        if looking["split"]:
            batches = streams.of_split(
                config.data, config.data.eval_split, mesh, settings.batch_size, "masks" in needs
            )
            streams.measure(looking["split"], "split", batches, *seeing)
        if looking["samples"]:
            batches = streams.of_images(*samples, mesh, settings.batch_size, "samples")
            streams.measure(looking["samples"], "samples", batches, *seeing)
        make = functools.partial(_generate, config, model)
        resources = metric.Resources(
            config, workdir, mesh, model.tokenizer, needs, networks, make, given_reference, samples
        )
        results: dict[str, Any] = {}
        for m in metrics:
            results |= m.result(resources)
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
    networks = {}
    if "lpips" in needs:
        networks["lpips"] = frozen_network(config, "lpips")
    if "features" in needs:
        name = config.evaluation.features
        if name not in ("inception", "classifier"):
            raise UserError(
                f"config.evaluation.features={name} is neither 'inception' nor 'classifier'"
            )
        if name == "inception":
            networks["features"] = frozen_network(config, name)
        else:
            networks["features"] = small_classifier.trained(config, workdir, mesh)
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


def _new_samples(config: ConfigDict, workdir: str, model: Model) -> Samples:
    """`config.evaluation.num_samples` of all requested classes in turn; they are kept."""
    class_ids = requested_classes(config, config.evaluation.num_samples)
    samples = Samples(_generate(config, model, class_ids, "evaluation samples"), class_ids)
    if jax.process_index() == 0:
        path = output_directory(workdir, "evaluation") / "samples.npz"
        save_samples(path, samples)
        log.info("wrote the samples that are measured: %s", path)
    return samples
