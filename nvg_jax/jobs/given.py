"""What the user gives: a map, or the first stages of a reference image."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from nvg_jax import control, image_files, pixels, sharding, visualize
from nvg_jax.data import pipeline
from nvg_jax.errors import UserError
from nvg_jax.evaluation import streams
from nvg_jax.generator.given import Given, given_structure
from nvg_jax.granularity import GranularitySequence
from nvg_jax.jobs.model import Variables
from nvg_jax.tokenizer import inference
from nvg_jax.tokenizer.model import Tokenizer

log = logging.getLogger(__name__)


def given_stages(config: ConfigDict, tokenizer: Tokenizer, variables: Variables) -> Given | None:
    """What `config.control` gives of every sample, as one sequence; None if it gives nothing.

    UserError: a map and a reference together, content without a reference, stages of neither or
    more than there are, or what `control.structure_from_map` and `named_image` raise.
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
    image = named_image(config.data, config.control.reference)
    return tokenized(config, image, inference.sequences_of, tokenizer, variables)


def tokenized(
    config: ConfigDict,
    image: Float[np.ndarray, "height width 3"],
    by: Callable[..., Any],
    tokenizer: Tokenizer,
    variables: Variables,
) -> Any:
    """What a function of `tokenizer.inference` gives for a batch of one image, as NumPy arrays."""
    mesh = sharding.create_mesh(config.mesh)
    batch = next(iter(streams.of_images(pixels.to_uint8(image)[None], None, mesh, 1)))
    return streams.gather(by(tokenizer, variables, batch["image"]), batch["mask"])


def named_image(data: ConfigDict, name: str) -> Float[np.ndarray, "height width 3"]:
    """The image in [-1, 1] of a name, for the images that `data`, a `config.data`, describes.

    An image file, of which the largest square in the middle is taken; or an example of the dataset
    as 'split:index'. UserError: there is no such file or example, or it is no image.
    """
    size = data.image_size
    if example := re.fullmatch(r"([^:+\[\]]+):([0-9]{1,18})", name):
        split, index = example[1], int(example[2])
        count = pipeline.num_examples(data, split)
        if index >= count:
            raise UserError(f"there is no example {name}: {split} has {count}, from 0 on")
        one = f"{split}[{index}:{index + 1}]"
        batch = next(iter(pipeline.evaluation_batches(data, one, 1)))
        return pixels.from_uint8(batch["image"][0])
    if not epath.Path(name).exists():
        raise UserError(
            f"there is no file {name}: name an image, or an example as {data.eval_split}:0"
        )
    return pixels.from_uint8(square_image(name, size))


def square_image(path: epath.PathLike, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The largest square in the middle of an image file. UserError: it is no image."""
    image = image_files.read_rgb(path)
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))


def _given_map(config: ConfigDict, tokenizer: Tokenizer) -> Given:
    text = config.control.structure
    levels = control.named_map(text, config.data.image_size, tokenizer.grid)
    stages = config.control.stages or control.stages_for(levels)
    structure = control.structure_from_map(levels, tokenizer.grid, stages, config.control.strict)
    log.info(f"{text} gives {what_became(levels, structure, tokenizer.grid, stages)}")
    log.info("in given.png and strips.png %s", visualize.MAP_COLOURS)
    return given_structure(structure[None], stages)


def what_became(
    levels: control.Levels, structure: Int[np.ndarray, "L"], grid: tuple[int, int], stages: int
) -> str:
    """What `control.structure_from_map` made of a map, in words."""
    count = 2 ** (stages - 1)
    balanced = f"balanced to {count} parts of {_percent(1 / count)} each, as every stage halves"
    if control.follows(structure, levels, grid, stages):
        balanced = "which it follows as they are"
    return f"the structure of the first {stages} stages: its {_covered(levels)}, {balanced}"


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
