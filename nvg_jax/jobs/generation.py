"""Making samples, and the job `sample`."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, Int, Key, UInt8
from ml_collections import ConfigDict

from nvg_jax import allowed, files, keys, sharding, visualize
from nvg_jax.errors import UserError
from nvg_jax.evaluation.archive import Samples, save_samples
from nvg_jax.generator import content, mean_flow, sampler
from nvg_jax.generator.given import Given, Kept
from nvg_jax.generator.settings import Settings
from nvg_jax.granularity import GranularitySequence
from nvg_jax.jobs.given import given_stages
from nvg_jax.jobs.job import class_bounds, job
from nvg_jax.jobs.method import METHODS
from nvg_jax.jobs.model import Model, load_model
from nvg_jax.progress import Progress
from nvg_jax.tokenizer import inference

log = logging.getLogger(__name__)


def sampling_settings(config: ConfigDict) -> Settings:
    """The part of a run's config that `generate` needs.

    UserError if a network that takes its guidance is to be guided more than it was in training, or
    one that does not look ahead is not to run at every stage.
    """
    settings, model = Settings.from_config(config.sampling), config.generator.model
    if model.structure == "masked" and settings.structure_stages:
        raise UserError(
            f"config.sampling.structure_stages={settings.structure_stages}: masked bits tell "
            "nothing of later stages: leave it empty, as ()"
        )
    for name, takes_it, most in (
        ("structure", model.structure == "mean_flow", mean_flow.MAX_GUIDANCE),
        ("content", model.guided_content, content.MAX_GUIDANCE),
    ):
        pair = getattr(settings, f"{name}_guidance")
        if takes_it and not 1 <= min(pair) <= max(pair) <= most:
            raise UserError(
                f"config.sampling.{name}_guidance={pair}: this model has been trained with "
                f"guidance from 1 to {most:g}"
            )
    return settings


def requested_classes(config: ConfigDict, num_samples: int) -> Int[np.ndarray, "N"]:
    """The class id of each sample: the requested classes in turn."""
    classes = config.sampling.classes or range(config.data.num_classes)
    return np.resize(np.asarray(classes, np.int32), num_samples)


def generate(
    model: Model,
    settings: Settings,
    class_ids: Sequence[int | None] | Int[np.ndarray, "N"],
    batch_size: int | None = None,
    seed: int | Key[Array, ""] = 0,
    given: Given | None = None,
    quiet: bool = False,
    kept: Kept | None = None,
) -> Iterator[tuple[GranularitySequence, UInt8[np.ndarray, "_ height width 3"]]]:
    """Sequences and images of the class ids, batch by batch; `quiet`: no progress bar.

    Sample n depends on its class, the seed, n and what is given or kept of it alone, not on the
    batch size or the devices. `given` and `kept` hold one sequence or image for all samples, or one
    for each. A class id may be None, for no class. Without a `batch_size` there is one batch.

    UserError, a ValueError, for class ids that the model has not learned.
    """
    arguments = _arguments(model, settings, class_ids, batch_size, seed, given, kept)

    def dispatched() -> Iterator[tuple[int, tuple[GranularitySequence, Array]]]:
        """The samples of each batch that are asked for, and what the devices will have made."""
        for real, of_batch in arguments:
            with jax.set_mesh(model.mesh):
                sequence = METHODS[model.method].task.sample(**of_batch)
                images = inference.images_of(model.tokenizer, model.tokenizer_variables, sequence)
            yield real, (sequence, images)

    with Progress("samples", len(class_ids), quiet=quiet) as progress:
        for real, made in sharding.one_ahead(dispatched()):
            found = jax.tree.map(lambda x, real=real: x[:real], sharding.on_host(made))
            progress.update(real)
            yield found


def stages(
    model: Model,
    settings: Settings,
    class_ids: Sequence[int | None] | Int[np.ndarray, "N"],
    seed: int | Key[Array, ""] = 0,
    given: Given | None = None,
    kept: Kept | None = None,
) -> Iterator[tuple[GranularitySequence, UInt8[np.ndarray, "_ height width 3"]]]:
    """What `generate` makes as one batch, after each stage: the sequences so far, of which later
    bits and tokens mean nothing, and their decoded canvases."""
    ((real, of_batch),) = _arguments(model, settings, class_ids, None, seed, given, kept)
    states = sampler.stages(**of_batch)
    while True:
        with jax.set_mesh(model.mesh):  # Not over the yield: the next may be asked for elsewhere.
            state = next(states, None)
            if state is None:
                return
            image = inference.decoded(model.tokenizer, model.tokenizer_variables, state.canvas)
            made = GranularitySequence(state.structure, state.tokens), image
        yield jax.tree.map(lambda x: x[:real], sharding.on_host(made))


def _arguments(
    model: Model,
    settings: Settings,
    class_ids: Sequence[int | None] | Int[np.ndarray, "N"],
    batch_size: int | None,
    seed: int | Key[Array, ""],
    given: Given | None,
    kept: Kept | None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """For each batch of `generate` how many samples are asked for, and the sampler's arguments."""
    num_classes = model.generator.sizes.num_classes
    classes = [each for each in np.asarray(class_ids).tolist() if each is not None]
    allowed.check({"classes": classes}, "sampling", class_bounds(num_classes))
    mesh = model.mesh
    count, shards = len(class_ids), sharding.num_batch_shards(mesh)
    whole = math.ceil(count / shards) * shards
    batch_size = min(batch_size or whole, whole)
    sharding.process_batch_size(batch_size, mesh, "config.sampling.batch_size")
    class_ids = [num_classes if each is None else each for each in class_ids]
    class_ids = np.asarray(class_ids, np.int32)
    of_all = {"sequence": given and given.sequence, "kept": kept}
    placement = sharding.batch_sharding(mesh)
    root = keys.named(seed, "samples")
    for start in range(0, count, batch_size):
        rows = np.arange(start, start + batch_size) % count
        of_batch = jax.tree.map(
            lambda x, rows=rows: np.asarray(x)[rows if len(x) > 1 else 0 * rows], of_all
        )
        of_batch |= {"rows": rows, "class_id": class_ids[rows]}
        placed = sharding.place_copies(of_batch, placement)
        with jax.set_mesh(mesh):
            image_keys = _keys(root, placed["rows"])
        yield (
            min(batch_size, count - start),
            {
                "tokenizer": model.tokenizer,
                "generator": model.generator,
                "settings": settings,
                "tokenizer_variables": model.tokenizer_variables,
                "generator_variables": model.generator_variables,
                "class_id": placed["class_id"],
                "image_keys": image_keys,
                **_some(given, placed["sequence"], placed["kept"]),
            },
        )


def _some(
    given: Given | None, sequence: GranularitySequence | None, kept: Kept | None
) -> dict[str, Any]:
    """What a sampler is told of what is given or kept of a batch, if anything is."""
    if given:
        given = given._replace(sequence=sequence)
    return {name: x for name, x in (("given", given), ("kept", kept)) if x is not None}


@jax.jit
def _keys(root: Key[Array, ""], rows: Int[Array, "B"]) -> Key[Array, "B"]:
    """The key of each sample, which depends on its number."""
    return jax.vmap(jax.random.fold_in, (None, 0))(root, rows)


def collect(
    batches: Iterable[tuple[GranularitySequence, np.ndarray]], count: int
) -> UInt8[np.ndarray, "N height width 3"]:
    """The `count` images that `generate` makes, in one array, beside which no more are kept."""
    images, start = None, 0
    for _, batch in batches:
        if images is None:
            images = np.empty((count, *batch.shape[1:]), np.uint8)
        images[start : start + len(batch)] = batch
        start += len(batch)
    return images


@job
def sample(config: ConfigDict, workdir: str) -> epath.Path | None:
    """Writes a new folder, `samples/` or else `samples-2/`, ...: `samples.npz`, a grid of samples
    and the strips of a few, as PNG, and `request.json`, what was asked of which weights.

    Where `config.control` gives the first stages, their maps are in `given.png`. Process 0 returns
    the folder.
    """
    return write_samples(config, workdir, "sample")


def write_samples(config: ConfigDict, workdir: str, for_job: str) -> epath.Path | None:
    """What the job `sample` does, which others do as well."""
    class_ids = requested_classes(config, config.sampling.num_samples)
    model = load_model(config, workdir)
    tokenizer, variables = model.tokenizer, model.tokenizer_variables
    given = given_stages(config, tokenizer, variables)
    batches = generate(
        model,
        sampling_settings(config),
        class_ids,
        config.sampling.batch_size,
        config.seed,
        given,
    )
    first = next(batches)
    images = collect(itertools.chain([first], batches), len(class_ids))
    few = jax.tree.map(lambda x: x[:4], first[0])
    stage_images = sharding.on_host(inference.stage_images_of(tokenizer, variables, few))
    rest = tokenizer.captions, None, tokenizer.stages
    strips = visualize.strips(stage_images, few.structure, tokenizer.grid, *rest)
    if jax.process_index() > 0:
        return None
    with files.new_folder(f"{workdir}/samples") as folder:
        save_samples(folder / "samples.npz", Samples(images, class_ids))
        visualize.save_png(folder / "grid.png", visualize.grid(images[:100]))
        visualize.save_png(folder / "strips.png", strips)
        if given:
            structure = np.asarray(given.sequence.structure[0])
            maps = visualize.structure_strip(structure, tokenizer.grid, given.structure_stages)
            visualize.save_png(folder / "given.png", maps)
        save_request(folder, config, model, for_job, "control")
    log.info("wrote %d samples: %s/{samples.npz,grid.png,strips.png}", len(images), folder)
    if given:
        log.info("wrote the given structure: %s/given.png", folder)
    elif few.structure is not None:
        log.info("in strips.png %s", visualize.MAP_COLOURS)
    return folder


def save_request(
    folder: epath.Path, config: ConfigDict, model: Model, for_job: str, section: str
) -> None:
    """Writes `request.json`: of which weights samples were made and how; `section` of the config
    says from what."""
    request = config.copy_and_resolve_references()
    sections = {name: request[name].to_dict() for name in ("sampling", section)}
    request = {"job": for_job, **model.sources, "seed": config.seed, **sections}
    files.write_text(folder / "request.json", json.dumps(request, indent=2) + "\n")


def find_samples(workdir: str, **request: str) -> epath.Path | None:
    """The folder of samples with this in its `request.json`, if there is one.

    One of the first version of this program, which has none, is taken for what is looked for.
    """
    for path in sorted(epath.Path(workdir).glob("samples*/samples.npz")):
        about = path.with_name("request.json")
        with contextlib.suppress(OSError, ValueError):
            if not about.exists() or request.items() <= json.loads(about.read_text()).items():
                return path.parent
    return None
