"""The job `evaluate`: how good a model is, in numbers."""

from __future__ import annotations

import json
import logging
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvg_jax import checkpoint, sharding
from nvg_jax.errors import UserError
from nvg_jax.evaluation.small_classifier import SmallClassifier, train_classifier
from nvg_jax.frozen.weights import Frozen
from nvg_jax.generator.build import build_generator, build_tokenizer
from nvg_jax.jobs import meaning, reconstruction, sample_metrics, variation
from nvg_jax.jobs.generation import requested_classes
from nvg_jax.jobs.model import (
    Model,
    frozen_network,
    load_generator,
    load_tokenizer,
    on_all_devices,
)

log = logging.getLogger(__name__)

_ALL = (*reconstruction.METRICS, *sample_metrics.METRICS, *meaning.METRICS, *variation.METRICS)
_OF_THE_GENERATOR = {*sample_metrics.METRICS, "guided_iou", "variation"}


def evaluate(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Measures what `config.evaluation.metrics` names, prints it and writes `evaluation.json`.

    The metrics are described by `reconstruction_metrics`, `sample_metrics`, `structure_miou`,
    `guided_iou` and `variation`; with `config.evaluation.num_samples` 0 those of the generator are
    left out. The images are those of `config.data.eval_split`. The file also says what was
    measured: the dataset, the split, the samples and the network that looked at them.

    Raises:
      UserError: an unknown metric, or what the metrics raise.
    """
    wanted = _wanted(config)
    of_samples = wanted & sample_metrics.METRICS.keys()
    path = config.evaluation.samples
    samples = sample_metrics.given_samples(config) if path else None
    # Mistakes are found before anything is measured.
    sample_metrics.check(config, of_samples, samples)
    real = sample_metrics.given_reference(config, of_samples) if of_samples else None
    meaning.check(config, wanted)
    if "variation" in wanted:
        variation.check(config)
    mesh = sharding.create_mesh(config.mesh)
    results: dict[str, Any] = {}
    with jax.set_mesh(mesh):
        tokenizer = build_tokenizer(config)
        variables = load_tokenizer(config, workdir, tokenizer)
        if wanted.intersection(_OF_THE_GENERATOR if not path else {"guided_iou", "variation"}):
            requested_classes(config, 1)
            generator = build_generator(config)
            learned = load_generator(config, workdir, generator)
            model = Model(tokenizer, variables, generator, learned, mesh)
        network = None
        if _needs_features(config, wanted):
            network = _feature_network(config, workdir, mesh)
        if wanted.intersection(reconstruction.METRICS):
            results |= reconstruction.reconstruction_metrics(
                config, wanted, tokenizer, variables, network, mesh
            )
        if "structure_miou" in wanted:
            results |= meaning.structure_miou(config, tokenizer, variables, mesh)
        if of_samples:
            images, class_ids = samples or sample_metrics.generated_samples(config, model, workdir)
            results |= sample_metrics.sample_metrics(
                config, workdir, wanted, images, class_ids, real, network, mesh
            )
        if "guided_iou" in wanted:
            results |= meaning.guided_iou(config, model, workdir, mesh)
        if "variation" in wanted:
            results |= variation.variation(config, model, network, workdir, mesh)
    for name, value in results.items():
        shown = " ".join(f"{v:.3f}" for v in np.atleast_1d(value))
        print(f"{name:>26}  {shown}")
    results["measured"] = {
        "dataset": config.data.dataset,
        "split": config.data.eval_split,
        "samples": path or config.evaluation.num_samples,
        "features": config.evaluation.features if network else None,
        "random_frozen_weights": config.frozen.random,
    }
    if jax.process_index() == 0:
        path = epath.Path(workdir) / "evaluation.json"
        path.write_text(json.dumps(results, indent=2) + "\n")
        log.info("wrote %s", path)
    return results


def _wanted(config: ConfigDict) -> set[str]:
    """The metrics to measure; UserError if one is unknown."""
    wanted = set(config.evaluation.metrics)
    unknown = sorted(wanted.difference(_ALL))
    if unknown:
        raise UserError(
            f"unknown metric {unknown[0]!r} in config.evaluation.metrics: there are "
            f"{', '.join(_ALL)}"
        )
    if not config.evaluation.num_samples and not config.evaluation.samples:
        wanted -= _OF_THE_GENERATOR
    return wanted


def _needs_features(config: ConfigDict, wanted: set[str]) -> bool:
    if "variation" in wanted and config.evaluation.variation.distance == "features":
        return True
    return bool(wanted & {"rfid", *sample_metrics.OF_FEATURES})


def _feature_network(config: ConfigDict, workdir: str, mesh: Mesh) -> Frozen:
    """Inception, or a classifier of the dataset, which is trained once and kept in the workdir."""
    if config.evaluation.features == "inception":
        return frozen_network(config, "inception")
    if config.evaluation.features != "classifier":
        raise UserError(
            f"config.evaluation.features={config.evaluation.features} is neither 'inception' nor "
            "'classifier'"
        )
    data, settings = config.data, config.evaluation.classifier
    module = SmallClassifier(data.image_size, data.num_classes)
    architecture = (
        f"{settings.epochs} epochs of {data.dataset} {data.train_split}, {module.architecture}"
    )
    path = epath.Path(workdir) / "classifier"
    if path.exists():
        abstract = jax.eval_shape(module.init, jax.random.key(0), module.example())
        variables = checkpoint.load_weights(path, abstract, architecture)
        return on_all_devices(Frozen(module, variables), mesh)
    network = on_all_devices(train_classifier(data, settings, config.seed), mesh)
    checkpoint.save_weights(path, network.variables, architecture)
    log.info("wrote the classifier whose features are compared: %s", path)
    return network
