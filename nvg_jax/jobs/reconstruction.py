"""The job `reconstruct`: pictures of images from coarse to fine."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from nvg_jax import files, pixels, visualize
from nvg_jax.data import pipeline
from nvg_jax.jobs.job import job
from nvg_jax.jobs.method import METHODS
from nvg_jax.jobs.model import load_tokenizer
from nvg_jax.tokenizer.training import reconstruction_strips

log = logging.getLogger(__name__)


@job
def reconstruct(config: ConfigDict, workdir: str) -> epath.Path | None:
    """Writes evaluation images coarse to fine: `strips.png` in a new folder `reconstructions/`,
    which process 0 returns."""
    tokenizer = METHODS[config.method].build_tokenizer(config)
    variables = load_tokenizer(config, workdir, tokenizer)
    batches = pipeline.evaluation_batches(
        config.data, config.data.eval_split, config.evaluation.num_pictures
    )
    images = pixels.from_uint8(jnp.asarray(next(iter(batches))["image"]))
    strips = reconstruction_strips(tokenizer, variables, images)
    if jax.process_index() == 0:
        with files.new_folder(f"{workdir}/reconstructions") as folder:
            visualize.save_png(folder / "strips.png", strips)
        log.info("wrote %d reconstructions: %s/strips.png", len(images), folder)
        if config.method == "nvg":
            log.info("in strips.png %s", visualize.MAP_COLOURS)
        return folder
    return None
