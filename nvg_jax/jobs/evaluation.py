"""The jobs `evaluate` and `reconstruct`: how good a model is, in numbers and in pictures."""

from __future__ import annotations

import json
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from nvg_jax import sharding, visualize
from nvg_jax.data import pipeline
from nvg_jax.evaluation import classifier, reconstruction
from nvg_jax.jobs.generation import generate, requested_classes, sampling_settings
from nvg_jax.jobs.model import (
    Model,
    Variables,
    load_generator,
    load_tokenizer,
    output_directory,
)
from nvg_jax.models.build import build_generator, build_tokenizer
from nvg_jax.models.tokenizer import Tokenizer
from nvg_jax.training.tokenizer_task import reconstruction_strips

log = logging.getLogger(__name__)


def reconstruct(config: ConfigDict, workdir: str) -> None:
    """Writes `reconstructions/strips.png`: coarse-to-fine strips of evaluation images."""
    tokenizer = build_tokenizer(config)
    variables = load_tokenizer(config, workdir, tokenizer)
    batches = pipeline.evaluation_batches(
        config.data, config.data.eval_split, config.evaluation.num_pictures
    )
    images = jnp.asarray(next(iter(batches))["image"])
    path = output_directory(workdir, "reconstructions") / "strips.png"
    visualize.save_png(path, reconstruction_strips(tokenizer, variables, images))
    log.info("wrote %d reconstructions: %s", len(images), path)


def evaluate(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Measures reconstructions of the evaluation split and, if asked, samples; prints the results.

    They are also written to `evaluation.json`. psnr: mean over the images. codebook_usage: share of
    the codes that the split uses, in all stages and by stage. With
    `config.evaluation.num_samples`: class_agreement, the share of samples that a support vector
    machine trained on the real training split assigns to the requested class, and diversity, the
    mean distance between samples of a class relative to real images.
    """
    mesh = sharding.create_mesh()
    with jax.set_mesh(mesh):
        tokenizer = build_tokenizer(config)
        variables = load_tokenizer(config, workdir, tokenizer)
        results = _evaluate_reconstructions(config, tokenizer, variables, mesh)
        if config.evaluation.num_samples:
            generator = build_generator(config)
            learned = load_generator(config, workdir, generator)
            results |= _evaluate_samples(config, Model(tokenizer, variables, generator, learned))
    path = epath.Path(workdir) / "evaluation.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    for name, value in results.items():
        shown = " ".join(f"{v:.3f}" for v in np.atleast_1d(value))
        print(f"{name:>24}  {shown}")
    log.info("wrote %s", path)
    return results


def _evaluate_reconstructions(
    config: ConfigDict, tokenizer: Tokenizer, variables: Variables, mesh: Mesh
) -> dict[str, Any]:
    @jax.jit
    def measure(variables, images, mask):
        sequence, canvases = tokenizer.apply(variables, images, method="tokenize")
        reconstructions = tokenizer.apply(variables, canvases[:, -1], method="decode")
        counts = reconstruction.token_counts(sequence.tokens, tokenizer.vocab_size, mask)
        return jnp.sum(reconstruction.psnr(images, reconstructions), where=mask), counts

    batches = pipeline.evaluation_batches(
        config.data,
        config.data.eval_split,
        sharding.process_batch_size(
            config.evaluation.batch_size, mesh, "config.evaluation.batch_size"
        ),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    psnr, counts = 0.0, 0
    for batch in tqdm(batches, "reconstructions", unit="batch", disable=None):
        batch = sharding.place_batch(batch, mesh)
        batch_psnr, batch_counts = measure(variables, batch["image"], batch["mask"])
        psnr += float(batch_psnr)
        counts += np.asarray(batch_counts)
    by_stage, overall = reconstruction.codebook_usage_by_stage(counts)
    return {
        "psnr": psnr / batches.num_examples,
        "codebook_usage": float(overall),
        "codebook_usage_by_stage": [float(x) for x in by_stage],
    }


def _evaluate_samples(config: ConfigDict, model: Model) -> dict[str, Any]:
    class_ids = requested_classes(config, config.evaluation.num_samples)
    batches = generate(
        model, sampling_settings(config), class_ids, config.sampling.batch_size, config.seed + 1
    )
    images = np.concatenate([images for _, images in batches])
    real, labels = [], []
    for batch in pipeline.evaluation_batches(config.data, config.data.train_split, 256):
        real.append(visualize.to_uint8(batch["image"][batch["mask"]]))
        labels.append(batch["label"][batch["mask"]])
    real, labels = np.concatenate(real), np.concatenate(labels)
    judge = classifier.train_classifier(real, labels)
    return {
        "class_agreement": classifier.class_agreement(judge, images, class_ids),
        "diversity": classifier.diversity(images, class_ids, real, labels),
    }
