"""Reconstructions: the job `reconstruct`, and how good they are in numbers."""

from __future__ import annotations

import logging
from collections.abc import Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvg_jax import visualize
from nvg_jax.data import pipeline
from nvg_jax.evaluation import features, reconstruction
from nvg_jax.evaluation.distribution import Accumulator, frechet_distance
from nvg_jax.frozen.lpips import check_size
from nvg_jax.frozen.weights import Frozen
from nvg_jax.generator.build import build_tokenizer
from nvg_jax.jobs.model import Variables, frozen_network, load_tokenizer, output_directory
from nvg_jax.tokenizer.model import Tokenizer
from nvg_jax.tokenizer.training import reconstruction_strips

log = logging.getLogger(__name__)

METRICS = ("psnr", "ssim", "lpips", "rfid", "codebook_usage")


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


def reconstruction_metrics(
    config: ConfigDict,
    metrics: Set[str],
    tokenizer: Tokenizer,
    variables: Variables,
    network: Frozen | None,
    mesh: Mesh,
) -> dict[str, Any]:
    """The `metrics`, of METRICS, of all images of the evaluation split; distances are means.

    rfid: the Fréchet distance between the images' and the reconstructions' features, both with
    8-bit pixels. codebook_usage: share of the codes that the split uses, in all stages and by
    stage. Raises UserError if a metric cannot be had of images of this size.
    """
    lpips = None
    if "lpips" in metrics:
        check_size(tokenizer.image_size, "take it out of config.evaluation.metrics")
        lpips = frozen_network(config, "lpips")
    networks = {"lpips": lpips, "features": network if "rfid" in metrics else None}

    @jax.jit
    def measure(variables, weights, images, mask):
        sequence, canvases = tokenizer.apply(variables, images, method="tokenize")
        decoded = tokenizer.apply(variables, canvases[:, -1], method="decode")
        by_image = {}
        if "psnr" in metrics:
            by_image["psnr"] = reconstruction.psnr(images, decoded)
        if "ssim" in metrics:
            by_image["ssim"] = reconstruction.ssim(images, decoded)
        if lpips:
            exact = lpips.module.clone(precision="float32")
            by_image["lpips"] = exact.apply(weights["lpips"], images, decoded)
        pools = ()
        if networks["features"]:
            pools = tuple(
                network.module.apply(weights["features"], features.as_stored(x)).pool
                for x in (images, decoded)
            )
        counts = reconstruction.token_counts(sequence.tokens, tokenizer.vocab_size, mask)
        return by_image, pools, counts

    weights = {name: of.variables for name, of in networks.items() if of}
    batches = features.of_split(
        config.data, config.data.eval_split, mesh, config.evaluation.batch_size
    )
    measured, counts, accumulators = [], 0, (Accumulator(), Accumulator())
    for batch in batches:
        by_image, pools, of_batch = measure(variables, weights, batch["image"], batch["mask"])
        by_image, pools = features.gather((by_image, pools), batch["mask"])
        measured.append(by_image)
        counts += np.asarray(of_batch)
        for accumulator, pool in zip(accumulators, pools, strict=False):
            accumulator.add(pool)
    results: dict[str, Any] = {}
    for name in (name for name in METRICS if name in measured[0]):
        values = np.concatenate([by_image[name] for by_image in measured])
        results[name] = float(values.mean(dtype=np.float64))
    if "rfid" in metrics:
        results["rfid"] = frechet_distance(*(x.statistics() for x in accumulators))
    if "codebook_usage" in metrics:
        by_stage, overall = reconstruction.codebook_usage_by_stage(counts)
        results["codebook_usage"] = float(overall)
        results["codebook_usage_by_stage"] = [float(x) for x in by_stage]
    return results
