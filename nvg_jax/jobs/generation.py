"""The job `sample`, and the samples that other jobs measure."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, Int, Key, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from nvg_jax import granularity, pixels, sharding, visualize
from nvg_jax.errors import UserError
from nvg_jax.generator import sampler as sampling
from nvg_jax.jobs.given import given_stages
from nvg_jax.jobs.model import Model, load_model, output_directory

log = logging.getLogger(__name__)


def sampling_settings(config: ConfigDict) -> sampling.Settings:
    """The part of `config.sampling` that the stage loop needs."""
    names = [field.name for field in dataclasses.fields(sampling.Settings)]
    values = {name: config.sampling[name] for name in names}
    # A config that was read from JSON has lists.
    return sampling.Settings(
        **{name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
    )


def requested_classes(config: ConfigDict, num_samples: int) -> np.ndarray:
    """The class id of each sample: the requested classes in turn; UserError if one is unknown."""
    num_classes = config.data.num_classes
    classes = np.asarray(config.sampling.classes or range(num_classes), np.int32)
    for class_id in classes:
        if not 0 <= class_id < num_classes:
            raise UserError(
                f"class {class_id} in config.sampling.classes is outside 0..{num_classes - 1}"
            )
    return np.resize(classes, num_samples)


def generate(
    model: Model,
    settings: sampling.Settings,
    class_ids: np.ndarray,
    batch_size: int | None = None,
    seed: int = 0,
    given: sampling.Given | None = None,
    quiet: bool = False,
) -> Iterator[tuple[granularity.GranularitySequence, np.ndarray]]:
    """Sequences and uint8 images of the class ids, batch by batch; `quiet`: no progress bar.

    Sample n depends on its class, the seed, n and what is given of it alone, not on the batch size
    or the devices. `given` holds one sequence for all samples, or one for each. Without a
    `batch_size` there is one batch.
    """
    mesh = model.mesh
    count, shards = len(class_ids), sharding.num_batch_shards(mesh)
    whole = math.ceil(count / shards) * shards
    batch_size = min(batch_size or whole, whole)
    sharding.process_batch_size(batch_size, mesh, "config.sampling.batch_size")
    class_ids = np.asarray(class_ids, np.int32)
    padded = np.arange(math.ceil(count / batch_size) * batch_size) % count
    placement = sharding.batch_sharding(mesh)
    given = given or sampling.nothing_given(1, model.generator.num_positions)
    disable = True if quiet else None
    with tqdm(total=count, desc="samples", unit="image", disable=disable) as progress:
        for start in range(0, count, batch_size):
            rows = padded[start : start + batch_size]
            kept = jax.tree.map(
                lambda x, rows=rows: np.broadcast_to(x, (count, *x.shape[1:]))[rows],
                given.sequence,
            )
            placed_rows, placed_ids, kept = sharding.place_copies(
                (rows, class_ids[rows], kept), placement
            )
            with jax.set_mesh(mesh):
                sequence = sampling.sample(
                    model.tokenizer,
                    model.generator,
                    settings,
                    model.tokenizer_variables,
                    model.generator_variables,
                    placed_ids,
                    _keys(seed, placed_rows),
                    given=given._replace(sequence=kept),
                )
                images = sampling.decode(model.tokenizer, model.tokenizer_variables, sequence)
            real = min(batch_size, count - start)
            sequence, images = jax.tree.map(
                lambda x, real=real: x[:real], sharding.on_host((sequence, images))
            )
            progress.update(real)
            yield sequence, pixels.to_uint8(images)


@jax.jit
def _keys(seed: int | Int[Array, ""], rows: Int[Array, "B"]) -> Key[Array, "B"]:
    """The key of each sample, which depends on its number."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)


def sample(config: ConfigDict, workdir: str) -> None:
    """Writes `samples/`: `samples.npz`, a grid of samples and the strips of a few, as PNG.

    Where `config.control` gives the first stages, their maps are in `given.png`.
    """
    class_ids = requested_classes(config, config.sampling.num_samples)
    model = load_model(config, workdir)
    settings = sampling_settings(config)
    given = given_stages(config, model.tokenizer, model.tokenizer_variables)
    images, first = [], None
    batches = generate(model, settings, class_ids, config.sampling.batch_size, config.seed, given)
    for sequence, batch in batches:
        first = first or sequence
        images.append(batch)
    images = np.concatenate(images)
    few = jax.tree.map(lambda x: x[:4], first)
    stage_images = sampling.decode_stages(model.tokenizer, model.tokenizer_variables, few)
    stage_images = pixels.to_uint8(sharding.on_host(stage_images))
    strips = visualize.strips(stage_images, few.structure, model.tokenizer.grid)
    if jax.process_index() > 0:
        return
    directory = output_directory(workdir, "samples")
    save_samples(directory / "samples.npz", images, class_ids)
    visualize.save_png(directory / "grid.png", visualize.grid(images[:100]))
    visualize.save_png(directory / "strips.png", strips)
    log.info("wrote %d samples: %s/{samples.npz,grid.png,strips.png}", len(images), directory)
    if given:
        maps = visualize.structure_strip(
            np.asarray(given.sequence.structure[0]), model.tokenizer.grid, given.structure_stages
        )
        visualize.save_png(directory / "given.png", maps)
        log.info("wrote the given structure: %s/given.png", directory)


def save_samples(
    path: epath.Path, images: UInt8[np.ndarray, "N H W 3"], class_ids: Int[np.ndarray, "N"]
) -> None:
    """Writes samples in the format of the ADM evaluation suite: images `arr_0`, labels `arr_1`."""
    with path.open("wb") as file:
        np.savez(file, images, class_ids)
