"""What the user gives of a picture: a map, or the first stages of a reference image."""

from __future__ import annotations

import logging
import re

import numpy as np
from etils import epath
from jaxtyping import Float
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from nvg_jax import control, image_files, pixels, sharding, visualize
from nvg_jax.data import pipeline
from nvg_jax.errors import UserError
from nvg_jax.evaluation import streams
from nvg_jax.generator.sampler import Given, given_structure
from nvg_jax.granularity import GranularitySequence
from nvg_jax.jobs.model import Variables
from nvg_jax.tokenizer import inference
from nvg_jax.tokenizer.model import Tokenizer

log = logging.getLogger(__name__)


def given_stages(config: ConfigDict, tokenizer: Tokenizer, variables: Variables) -> Given | None:
    """What `config.control` gives of every sample, as one sequence; None if it gives nothing.

    UserError: a map and a reference together, content without a reference, stages of neither or
    more than there are, or what `control.structure_from_map` and `reference_image` raise.
    """
    wanted = config.control
    if wanted.structure and wanted.reference:
        raise UserError("config.control.structure and config.control.reference exclude each other")
    if wanted.content and not wanted.reference:
        raise UserError("config.control.content needs a reference: set config.control.reference")
    if wanted.structure:
        return _given_map(config, tokenizer)
    if not wanted.reference:
        if wanted.stages:
            raise UserError(
                f"config.control.stages={wanted.stages} stages of nothing: set "
                "config.control.structure or config.control.reference"
            )
        return None
    sequence = reference_sequence(config, tokenizer, variables)
    count = tokenizer.last_stage + 1
    if not 0 <= wanted.stages <= count:
        raise UserError(
            f"config.control.stages={wanted.stages}: choose 1 to {count} stages of the "
            "reference, or 0 for all"
        )
    stages = wanted.stages or count
    kept = "structure and tokens" if wanted.content else "structure"
    log.info("%s gives the %s of the first %d stages", wanted.reference, kept, stages)
    log.info("in given.png and strips.png %s", visualize.MAP_COLOURS)
    return Given(sequence, stages, stages if wanted.content else 0)


def reference_sequence(
    config: ConfigDict, tokenizer: Tokenizer, variables: Variables
) -> GranularitySequence:
    """The sequence of the reference image, a batch of one, as NumPy arrays."""
    image = pixels.to_uint8(reference_image(config))
    batches = streams.of_images(image[None], None, sharding.create_mesh(config.mesh), 1)
    batch = next(iter(batches))
    sequence = inference.sequences_of(tokenizer, variables, batch["image"])
    return streams.gather(sequence, batch["mask"])


def reference_image(config: ConfigDict) -> Float[np.ndarray, "height width 3"]:
    """The image in [-1, 1] that `config.control.reference` names.

    An image file, of which the largest square in the middle is taken; or an example of the dataset
    as 'split:index'. UserError: there is no such file or example, or it is no image.
    """
    name, size = config.control.reference, config.data.image_size
    if example := re.fullmatch(r"([^:+\[\]]+):([0-9]{1,18})", name):
        split, index = example[1], int(example[2])
        count = pipeline.num_examples(config.data, split)
        if index >= count:
            raise UserError(f"there is no example {name}: {split} has {count}, from 0 on")
        one = f"{split}[{index}:{index + 1}]"
        return next(iter(pipeline.evaluation_batches(config.data, one, 1)))["image"][0]
    if not epath.Path(name).exists():
        raise UserError(
            f"there is no file {name}: name an image, or an example as {config.data.eval_split}:0"
        )
    image = image_files.read_rgb(name)
    square = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return pixels.from_uint8(np.asarray(square))


def _given_map(config: ConfigDict, tokenizer: Tokenizer) -> Given:
    text, size = config.control.structure, config.data.image_size
    if control.is_shape(text):
        levels = control.draw_shape(text, size)
    else:
        levels = control.read_map(text, size, tokenizer.grid)
    stages = config.control.stages or control.stages_for(levels)
    structure = control.structure_from_map(levels, tokenizer.grid, stages, config.control.strict)
    count = 2 ** (stages - 1)
    balanced = f"balanced to {count} parts of {_percent(1 / count)} each, as every stage halves"
    if control.follows(structure, levels, tokenizer.grid, stages):
        balanced = "which it follows as they are"
    log.info(
        f"{text} gives the structure of the first {stages} stages: its {_covered(levels)}, "
        f"{balanced}"
    )
    log.info("in given.png and strips.png %s", visualize.MAP_COLOURS)
    return given_structure(structure[None], stages)


def _covered(levels: control.Levels) -> str:
    """How much of the picture the levels of a map cover, in few words however many there are."""
    shares = np.unique(levels, return_counts=True)[1] / levels.size
    few = [_percent(share) for share in shares[:4]]
    shown = f"{', '.join(few[:-1])} and {few[-1]} of the picture"
    if len(shares) > len(few):
        shown = f"{_percent(shares.min())} to {_percent(shares.max())} of the picture each"
    return f"{len(shares)} levels, from dark to bright, cover {shown}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
