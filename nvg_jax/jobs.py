"""The jobs of the command line, as functions of a config and a working directory.

A working directory holds `config.json`; `tokenizer/` and `generator/` with checkpoints, summaries
and pictures; and what the jobs write: `samples/`, `reconstructions/`, `evaluation.json`, `export/`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from nvg_jax import checkpoint, granularity, sampling, sharding, visualize
from nvg_jax.data import pipeline
from nvg_jax.errors import UserError
from nvg_jax.evaluation import classifier, reconstruction
from nvg_jax.models.build import build_generator, build_tokenizer
from nvg_jax.models.generator import Generator
from nvg_jax.models.tokenizer import Tokenizer
from nvg_jax.training import loop
from nvg_jax.training.generator_task import GeneratorTask
from nvg_jax.training.state import TrainState
from nvg_jax.training.tokenizer_task import (
    TokenizerTask,
    canvas_moments,
    reconstruction_strips,
    with_canvas_scales,
)

log = logging.getLogger(__name__)
Variables = Any


def train(config: ConfigDict, workdir: str) -> None:
    """Brings the workdir from wherever it is to a trained model and a picture of its samples.

    Trains the tokenizer, unless `config.tokenizer.checkpoint` names one, then the generator, each
    from its last checkpoint.
    """
    mesh = sharding.create_mesh()
    tokenizer, generator = build_tokenizer(config), build_generator(config)
    task_config = config.generator.training
    schedule = _schedule(config, task_config, "generator", mesh)
    # What the samples at the end need is checked before hours of training.
    requested_classes(config, config.sampling.num_samples)
    sharding.process_batch_size(config.sampling.batch_size, mesh, "config.sampling.batch_size")
    with jax.set_mesh(mesh), loop.stop_signal() as stop:
        if config.tokenizer.checkpoint:
            tokenizer_variables = _load_tokenizer(config, workdir, tokenizer)
        else:
            tokenizer_variables = _train_tokenizer(config, workdir, tokenizer, mesh, stop)
        task = GeneratorTask(
            generator,
            tokenizer,
            tokenizer_variables,
            task_config,
            schedule.num_steps,
            sampling_settings(config),
        )
        initial = None
        if config.generator.checkpoint:
            initial = _load_generator(config, workdir, generator)
        with _training_data(config, schedule, seed=config.seed + 1) as iterator:
            loop.train(
                task,
                task_config,
                schedule,
                iterator,
                f"{workdir}/generator",
                mesh,
                seed=config.seed + 1,
                stop=stop,
                initial=initial,
                begin=lambda: save_config(config, workdir),
            )
    sample(config, workdir)


def _train_tokenizer(
    config: ConfigDict, workdir: str, tokenizer: Tokenizer, mesh: Mesh, stop: Callable[[], bool]
) -> Variables:
    task_config = config.tokenizer.training
    schedule = _schedule(config, task_config, "tokenizer", mesh)

    def finish(state: TrainState) -> TrainState:
        """Measures the canvases' scales with the averaged weights, on training crops."""
        moments = []
        with _training_data(config, schedule, seed=config.seed + 2) as data:
            for _ in tqdm(range(config.tokenizer.scale_batches), "canvas scales", disable=None):
                images = sharding.place_batch(next(data)["image"], mesh)
                moments.append(jax.device_get(canvas_moments(tokenizer, state.ema, images)))
        return state.replace(ema=with_canvas_scales(state.ema, moments))

    with _training_data(config, schedule, seed=config.seed) as iterator:
        state = loop.train(
            TokenizerTask(tokenizer, task_config, schedule.num_steps, schedule.epoch_steps),
            task_config,
            schedule,
            iterator,
            f"{workdir}/tokenizer",
            mesh,
            seed=config.seed,
            stop=stop,
            begin=lambda: save_config(config, workdir),
            finish=finish,
        )
    return state.ema


def _schedule(config: ConfigDict, task_config: ConfigDict, name: str, mesh: Mesh) -> loop.Schedule:
    sharding.process_batch_size(task_config.batch_size, mesh, f"config.{name}.training.batch_size")
    return loop.Schedule.create(
        task_config, pipeline.num_examples(config.data, config.data.train_split)
    )


def _training_data(config: ConfigDict, schedule: loop.Schedule, seed: int):
    """This process's training batches; closing ends their worker processes."""
    return contextlib.closing(
        pipeline.train_iterator(
            config.data,
            batch_size=schedule.batch_size // jax.process_count(),
            seed=seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    )


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained tokenizer and generator: modules and what they have learned."""

    tokenizer: Tokenizer
    tokenizer_variables: Variables
    generator: Generator
    generator_variables: Variables


def load_model(config: ConfigDict, workdir: str) -> Model:
    """The averaged weights that the config names, or else the newest of the workdir's training."""
    tokenizer, generator = build_tokenizer(config), build_generator(config)
    return Model(
        tokenizer,
        _load_tokenizer(config, workdir, tokenizer),
        generator,
        _load_generator(config, workdir, generator),
    )


def _load_tokenizer(config: ConfigDict, workdir: str, tokenizer: Tokenizer) -> Variables:
    return _load(config.tokenizer.checkpoint, f"{workdir}/tokenizer/checkpoints", tokenizer)


def _load_generator(config: ConfigDict, workdir: str, generator: Generator) -> Variables:
    return _load(config.generator.checkpoint, f"{workdir}/generator/checkpoints", generator)


def _load(weights: str, checkpoints: str, module: Tokenizer | Generator) -> Variables:
    """Weights from `weights` if it is given, else the average in the newest training checkpoint."""
    placement = sharding.replicated(sharding.create_mesh())
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement),
        jax.eval_shape(module.init, jax.random.key(0), module.example()),
    )
    if weights:
        return checkpoint.load_weights(weights, abstract, module.architecture)
    variables, step = checkpoint.restore_ema(checkpoints, module.architecture, abstract)
    log.info("using step %d of %s", step, checkpoints)
    return variables


def sampling_settings(config: ConfigDict) -> sampling.Settings:
    """The part of `config.sampling` that the stage loop needs."""
    names = [field.name for field in dataclasses.fields(sampling.Settings)]
    return sampling.Settings(**{name: config.sampling[name] for name in names})


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
    model: Model, settings: sampling.Settings, class_ids: np.ndarray, batch_size: int, seed: int
) -> Iterator[tuple[granularity.GranularitySequence, np.ndarray]]:
    """Sequences and uint8 images of the class ids, batch by batch, with a progress bar.

    Sample n depends on its class, the seed and n alone, not on the batch size or the devices.
    """
    mesh = sharding.create_mesh()
    sharding.process_batch_size(batch_size, mesh, "config.sampling.batch_size")
    count = len(class_ids)
    padded = np.resize(class_ids, math.ceil(count / batch_size) * batch_size)
    placement = sharding.batch_sharding(mesh)
    base_key = jax.random.key(seed)
    with tqdm(total=count, desc="samples", unit="image", disable=None) as progress:
        for start in range(0, count, batch_size):
            chosen = slice(start, start + batch_size)
            index = np.arange(chosen.start, chosen.stop)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(base_key, index)
            sequence = sampling.sample(
                model.tokenizer,
                model.generator,
                settings,
                model.tokenizer_variables,
                model.generator_variables,
                jax.device_put(padded[chosen], placement),
                jax.device_put(keys, placement),
            )
            images = sampling.decode(model.tokenizer, model.tokenizer_variables, sequence)
            real = min(batch_size, count - start)
            sequence, images = jax.tree.map(
                lambda x, real=real: multihost_utils.process_allgather(x, tiled=True)[:real],
                (sequence, images),
            )
            progress.update(real)
            yield sequence, visualize.to_uint8(images)


def sample(config: ConfigDict, workdir: str) -> None:
    """Writes `samples/`: `samples.npz`, a grid of samples and the strips of a few, as PNG.

    `samples.npz` has the format of the ADM evaluation suite: `arr_0` uint8 [N, H, W, 3], `arr_1`
    the labels [N].
    """
    class_ids = requested_classes(config, config.sampling.num_samples)
    model = load_model(config, workdir)
    settings = sampling_settings(config)
    images, first = [], None
    batches = generate(model, settings, class_ids, config.sampling.batch_size, config.seed)
    for sequence, batch in batches:
        first = first or sequence
        images.append(batch)
    images = np.concatenate(images)
    few = jax.tree.map(lambda x: jnp.asarray(x[:4]), first)
    stages = sampling.decode_stages(model.tokenizer, model.tokenizer_variables, few)
    strips = visualize.strips(
        visualize.to_uint8(stages), np.asarray(few.structure), model.tokenizer.grid
    )
    if jax.process_index() > 0:
        return
    directory = _output_directory(workdir, "samples")
    with (directory / "samples.npz").open("wb") as file:
        np.savez(file, images, class_ids)
    visualize.save_png(directory / "grid.png", visualize.grid(images[:100]))
    visualize.save_png(directory / "strips.png", strips)
    log.info("wrote %d samples: %s/{samples.npz,grid.png,strips.png}", len(images), directory)


def reconstruct(config: ConfigDict, workdir: str) -> None:
    """Writes `reconstructions/strips.png`: coarse-to-fine strips of evaluation images."""
    tokenizer = build_tokenizer(config)
    variables = _load_tokenizer(config, workdir, tokenizer)
    batches = pipeline.evaluation_batches(
        config.data, config.data.eval_split, config.evaluation.num_pictures
    )
    images = jnp.asarray(next(iter(batches))["image"])
    path = _output_directory(workdir, "reconstructions") / "strips.png"
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
        variables = _load_tokenizer(config, workdir, tokenizer)
        results = _evaluate_reconstructions(config, tokenizer, variables, mesh)
        if config.evaluation.num_samples:
            generator = build_generator(config)
            learned = _load_generator(config, workdir, generator)
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


def export(config: ConfigDict, workdir: str) -> None:
    """Writes the averaged weights as `export/tokenizer` and `export/generator`, for any job."""
    model = load_model(config, workdir)
    directory = epath.Path(workdir) / "export"
    for name in ("tokenizer", "generator"):
        module, variables = getattr(model, name), getattr(model, f"{name}_variables")
        checkpoint.save_weights(directory / name, variables, module.architecture)
        log.info("use them with --config.%s.checkpoint=%s", name, directory / name)


def save_config(config: ConfigDict, workdir: str) -> None:
    """Leaves the config beside what it made."""
    if jax.process_index() == 0:
        _output_directory(workdir, "").joinpath("config.json").write_text(
            config.to_json_best_effort(indent=2) + "\n"
        )


def _output_directory(workdir: str, name: str) -> epath.Path:
    directory = epath.Path(workdir) / name
    directory.mkdir(parents=True, exist_ok=True)
    return directory
