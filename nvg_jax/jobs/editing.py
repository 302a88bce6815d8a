"""The job `edit`: a part of an image is made anew, and the rest of it is kept."""

from __future__ import annotations

import itertools
import logging

import jax
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from nvg_jax import editing, files, pixels, visualize
from nvg_jax.errors import UserError
from nvg_jax.evaluation.archive import Samples, save_samples
from nvg_jax.generator import sampler
from nvg_jax.jobs.generation import collect, generate, sampling_settings, save_request
from nvg_jax.jobs.given import named_image, tokenized
from nvg_jax.jobs.job import job
from nvg_jax.jobs.model import Model, load_model
from nvg_jax.tokenizer import inference
from nvg_jax.tokenizer.model import build_tokenizer

log = logging.getLogger(__name__)

SHOWN, SHOWN_STAGE = 8, 3


@job
def edit(config: ConfigDict, workdir: str) -> epath.Path | None:
    """Writes a new folder `edited/`, which process 0 returns: `samples.npz`, variants of an image,
    of which `edited.png` shows the first, and `request.json`.

    The latent's positions without a pixel of the edited part keep structure and content, as
    `sampler.Kept` says. The part's pixels are those that are decoded; away from it, by the width of
    a position, they are the image's own, and between a mixture of both.

    UserError: no image or no mask, something given by `config.control`, or what `named_image` and
    `editing.edited_part` refuse.
    """
    for name in ("image", "mask"):
        if not config.edit[name]:
            raise UserError(f"the job edit needs an image and a mask: set --config.edit.{name}")
    if config.control.structure or config.control.reference:
        raise UserError(
            "the job edit keeps the image's own structure: leave config.control.structure and "
            "config.control.reference empty"
        )
    grid = build_tokenizer(config).grid
    part, free = editing.edited_part(config, grid)
    image, count = named_image(config.data, config.edit.image), config.edit.num_samples
    class_id = None if config.edit.class_id < 0 else config.edit.class_id
    settings, model = sampling_settings(config), load_model(config, workdir)
    structure, kept = kept_part(config, model, image, free)
    batch_size = config.sampling.batch_size
    batches = generate(model, settings, [class_id] * count, batch_size, config.seed, kept=kept)
    first = next(batches)
    made = collect(itertools.chain([first], batches), count)
    original, share = pixels.to_uint8(image), editing.share_of_new(part, grid)
    for each in made:
        each[:] = editing.blended(each, original, share)
    if jax.process_index() > 0:
        return None
    masks = [visualize.grey(x) for x in (share[..., 0], free.reshape(grid))]
    shown = (min(SHOWN_STAGE, model.tokenizer.last_stage),)
    structures = np.concatenate([structure, first[0].structure[:SHOWN]])
    maps = [visualize.structure_maps(each, grid, shown)[0] for each in structures]
    rows = [[original, masks[0], *made[:SHOWN]], [maps[0], masks[1], *maps[1:]]]
    captions = ["image", "edited part", *(f"variant {n}" for n in range(1, len(maps)))]
    with files.new_folder(f"{workdir}/edited") as folder:
        class_ids = None if class_id is None else np.full(count, class_id, np.int32)
        save_samples(folder / "samples.npz", Samples(made, class_ids))
        visualize.save_png(folder / "edited.png", visualize.table(rows, captions, group=2))
        save_request(folder, config, model, "edit", "edit")
    log.info("wrote %d variants: %s/{samples.npz,edited.png}", count, folder)
    return folder


def kept_part(
    config: ConfigDict,
    model: Model,
    image: Float[np.ndarray, "height width 3"],
    free: Bool[np.ndarray, "L"],
) -> tuple[Int[np.ndarray, "1 L"], sampler.Kept]:
    """The structure of an image in [-1, 1], and what is kept of it where positions aren't free."""
    latent, structure = tokenized(
        config, image, inference.latents_of, model.tokenizer, model.tokenizer_variables
    )
    return structure, sampler.Kept(np.where(free, -1, structure), latent)
