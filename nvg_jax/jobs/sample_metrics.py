"""How good samples are, in numbers: the metrics of the ADM evaluation suite, and of classes."""

from __future__ import annotations

import logging
from collections.abc import Set
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from nvg_jax import pixels
from nvg_jax.data import pipeline
from nvg_jax.data.token_cache import fingerprint
from nvg_jax.errors import UserError
from nvg_jax.evaluation import classifier, features, reference
from nvg_jax.evaluation.distribution import (
    frechet_distance,
    inception_score,
    precision_recall,
    statistics,
)
from nvg_jax.evaluation.reference import Reference
from nvg_jax.frozen.weights import Frozen
from nvg_jax.jobs.generation import (
    generate,
    requested_classes,
    sampling_settings,
    save_samples,
)
from nvg_jax.jobs.model import Model, output_directory

log = logging.getLogger(__name__)

Samples = tuple[UInt8[np.ndarray, "N H W 3"], Int[np.ndarray, "N"] | None]

# How many samples each metric needs.
METRICS = {
    "fid": 2,
    "sfid": 2,
    "inception_score": 1,
    "precision_recall": 4,
    "classifier_agreement": 1,
    "class_agreement": 1,
    "diversity": 2,
}
OF_FEATURES = {"fid", "sfid", "inception_score", "precision_recall", "classifier_agreement"}
_OF_CLASSES = {"classifier_agreement", "class_agreement", "diversity"}


def check(config: ConfigDict, metrics: Set[str], samples: Samples | None) -> None:
    """UserError if a metric needs more samples, in `samples` or to be generated, or classes."""
    count = len(samples[0]) if samples else config.evaluation.num_samples
    for name in sorted(metrics):
        if count < METRICS[name]:
            raise UserError(
                f"{name} needs at least {METRICS[name]} samples and there are {count}: use more, "
                "or take it out of config.evaluation.metrics"
            )
    of_classes = ", ".join(sorted(metrics & _OF_CLASSES))
    if of_classes and samples and samples[1] is None:
        raise UserError(
            f"{config.evaluation.samples} has no classes (arr_1), which {of_classes} need"
        )


def generated_samples(config: ConfigDict, model: Model, workdir: str) -> Samples:
    """`config.evaluation.num_samples` new samples, of all requested classes in turn.

    They are kept in `evaluation/samples.npz`, in the format of the ADM evaluation suite.
    """
    class_ids = requested_classes(config, config.evaluation.num_samples)
    batches = generate(
        model, sampling_settings(config), class_ids, config.sampling.batch_size, config.seed + 1
    )
    images = np.concatenate([images for _, images in batches])
    if jax.process_index() == 0:
        path = output_directory(workdir, "evaluation") / "samples.npz"
        save_samples(path, images, class_ids)
        log.info("wrote the samples that are measured: %s", path)
    return images, class_ids


def given_samples(config: ConfigDict) -> Samples:
    """The samples in the file that `config.evaluation.samples` names, and their classes if there.

    UserError if the file holds no images of the model's size.
    """
    path = config.evaluation.samples
    arrays = reference.load_arrays(path)
    if "arr_0" not in arrays:
        raise UserError(f"{path} holds no samples: it has no array arr_0")
    images, class_ids = arrays["arr_0"], arrays.get("arr_1")
    reference.check_images(images, path)
    _check_size(images, config.data.image_size, path)
    return images, class_ids


def sample_metrics(
    config: ConfigDict,
    workdir: str,
    metrics: Set[str],
    images: UInt8[np.ndarray, "N H W 3"],
    class_ids: Int[np.ndarray, "N"] | None,
    real: Reference | None,
    network: Frozen | None,
    mesh: Mesh,
) -> dict[str, Any]:
    """The `metrics`, of METRICS, of samples against real images.

    fid, sfid, inception_score (with its standard deviation over parts of 5,000), precision and
    recall: as the ADM evaluation suite defines them, over the network's features, against `real`,
    or without it the training split. classifier_agreement: share of the samples that the network
    assigns to the requested class; classifier_accuracy: of the images of the evaluation split.
    class_agreement: that of a support vector machine on pixels; diversity: mean distance between
    samples of a class relative to real images.
    """
    results: dict[str, Any] = {}
    if metrics & OF_FEATURES:
        batches = _batches(config, images, mesh, "features of samples")
        seen = features.concatenate(features.extract(network, batches))
    if metrics & {"fid", "sfid", "precision_recall"}:
        real = real or _reference_of_split(config, workdir, network, mesh)
        if real.pool is None:
            real = _with_statistics(config, real, network, mesh)
    if "fid" in metrics:
        results["fid"] = frechet_distance(statistics(seen.pool), real.pool)
    if "sfid" in metrics:
        results["sfid"] = frechet_distance(statistics(seen.spatial), real.spatial)
    if "inception_score" in metrics:
        results["inception_score"], results["inception_score_std"] = inception_score(seen.logits)
    if "precision_recall" in metrics:
        batches = _batches(config, real.images, mesh, "features of the reference")
        of_real = features.concatenate(features.extract(network, batches))
        results["precision"], results["recall"] = precision_recall(of_real.pool, seen.pool)
    if "classifier_agreement" in metrics:
        agree = seen.logits.argmax(axis=1) == class_ids
        results["classifier_agreement"] = float(agree.mean())
        results["classifier_accuracy"] = _accuracy(config, network, mesh)
    if metrics & {"class_agreement", "diversity"}:
        results |= _pixel_metrics(config, metrics, images, class_ids)
    return results


def given_reference(config: ConfigDict, metrics: Set[str]) -> Reference | None:
    """What `config.evaluation.reference` names, if anything.

    UserError if it has not what the metrics need, or images of another size.
    """
    path = config.evaluation.reference
    if not path:
        return None
    real = reference.load(path)
    if real.images is not None:
        _check_size(real.images, config.data.image_size, path)
    elif "precision_recall" in metrics:
        raise UserError(f"{path} has no images (arr_0), which precision_recall needs")
    if "sfid" in metrics and real.spatial is None and real.pool is not None:
        raise UserError(f"{path} has no statistics for sfid (mu_s, sigma_s)")
    return real


def _reference_of_split(config: ConfigDict, workdir: str, network: Frozen, mesh: Mesh) -> Reference:
    """The reference of the training split, made once and kept in the workdir."""
    data = config.data
    source = (
        f"{data.dataset} {data.train_split}, {data.image_size} pixels resized by "
        f"{data.resize_ratio}, {config.evaluation.features} {fingerprint(network.variables)}"
    )
    path = epath.Path(workdir) / "reference.npz"
    if path.exists():
        real = reference.load(path)
        if real.source == source:
            return real
        log.info("%s is of %s: it is made again", path, real.source)
    real = reference.make(data, network, mesh, config.evaluation.batch_size, source)
    reference.save(path, real)
    log.info("wrote the reference of %s: %s", data.train_split, path)
    return real


def _with_statistics(config: ConfigDict, real: Reference, network: Frozen, mesh: Mesh) -> Reference:
    batches = _batches(config, real.images, mesh, "statistics of the reference")
    seen = features.concatenate(features.extract(network, batches))
    return real._replace(pool=statistics(seen.pool), spatial=statistics(seen.spatial))


def _batches(config: ConfigDict, images: np.ndarray, mesh: Mesh, text: str) -> features.Batches:
    return features.of_images(images, mesh, config.evaluation.batch_size, text)


def _accuracy(config: ConfigDict, network: Frozen, mesh: Mesh) -> float:
    """Share of the evaluation split that the network assigns to the right class."""
    look, right, count = features.extractor(network), 0, 0
    for batch in features.of_split(
        config.data, config.data.eval_split, mesh, config.evaluation.batch_size
    ):
        found = look(batch["image"]).logits.argmax(axis=1) == batch["label"]
        found = features.gather(found, batch["mask"])
        right, count = right + found.sum(), count + len(found)
    return float(right / count)


def _pixel_metrics(
    config: ConfigDict, metrics: Set[str], images: np.ndarray, class_ids: np.ndarray
) -> dict[str, float]:
    real, labels = [], []
    for batch in pipeline.evaluation_batches(config.data, config.data.train_split, 256):
        real.append(pixels.to_uint8(batch["image"][batch["mask"]]))
        labels.append(batch["label"][batch["mask"]])
    real, labels = np.concatenate(real), np.concatenate(labels)
    results = {}
    if "class_agreement" in metrics:
        judge = classifier.train_classifier(real, labels)
        results["class_agreement"] = classifier.class_agreement(judge, images, class_ids)
    if "diversity" in metrics:
        results["diversity"] = classifier.diversity(images, class_ids, real, labels)
    return results


def _check_size(images: np.ndarray, image_size: int, path: epath.PathLike) -> None:
    height, width = images.shape[1:3]
    if (height, width) != (image_size, image_size):
        raise UserError(
            f"the images in {path} are {width} x {height} pixels and the model's "
            f"{image_size} x {image_size}: use a batch of the same resolution"
        )
