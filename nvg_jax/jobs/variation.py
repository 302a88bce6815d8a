"""How much samples still vary when their first stages are given (paper, Appendix B.4)."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from nvg_jax import pixels, visualize
from nvg_jax.data import pipeline
from nvg_jax.errors import UserError
from nvg_jax.evaluation import features
from nvg_jax.frozen.lpips import check_size
from nvg_jax.frozen.weights import Frozen
from nvg_jax.generator.sampler import Given
from nvg_jax.jobs.generation import generate, sampling_settings
from nvg_jax.jobs.given import sequences_of
from nvg_jax.jobs.model import Model, frozen_network, output_directory

log = logging.getLogger(__name__)

METRICS = ("variation",)
Distances = Callable[[UInt8[np.ndarray, "R N H W 3"]], Float[np.ndarray, "R"]]


def check(config: ConfigDict) -> None:
    """UserError for an unknown distance, too few samples, or fewer images than references."""
    settings = config.evaluation.variation
    if settings.distance not in ("lpips", "features"):
        raise UserError(
            f"config.evaluation.variation.distance={settings.distance} is neither 'lpips' nor "
            "'features'"
        )
    if settings.distance == "lpips":
        check_size(config.data.image_size, "set config.evaluation.variation.distance to 'features'")
    if settings.num_samples < 2:
        raise UserError(
            f"config.evaluation.variation.num_samples={settings.num_samples}: distances need at "
            "least two samples of each reference"
        )
    count = pipeline.num_examples(config.data, config.data.eval_split)
    if count < settings.num_references:
        raise UserError(
            f"config.evaluation.variation.num_references={settings.num_references}, but split "
            f"{config.data.eval_split!r} has {count} images"
        )


def variation(
    config: ConfigDict, model: Model, network: Frozen | None, workdir: str, mesh: Mesh
) -> dict[str, list[float]]:
    """Mean distance between samples that share their first j stages with a reference, j = 0..K.

    variation_structure: only the structure of the stages is given; variation_both: structure and
    content. The references are images of the evaluation split, the samples of their class; the
    distance is `config.evaluation.variation.distance`: 'lpips', or 'features', the Euclidean
    distance of the network's pool features. A plot goes to `evaluation/variation.png`.
    """
    settings = config.evaluation.variation
    distance = _distance(config, network, mesh)
    batches = pipeline.evaluation_batches(
        config.data, config.data.eval_split, settings.num_references
    )
    batch = next(iter(batches))
    images = pixels.to_uint8(batch["image"])
    references = sequences_of(images, model.tokenizer, model.tokenizer_variables, model.mesh)
    copies = jax.tree.map(lambda x: np.repeat(x, settings.num_samples, axis=0), references)
    class_ids = np.repeat(batch["label"], settings.num_samples)
    results = {"variation_structure": [], "variation_both": []}
    stages = range(model.generator.last_stage + 1)
    rounds = list(itertools.product(enumerate(results), stages))
    for (keep_content, name), kept in tqdm(rounds, "variation", unit="stage", disable=None):
        samples = generate(
            model,
            sampling_settings(config),
            class_ids,
            config.sampling.batch_size,
            config.seed + 3,
            Given(copies, kept, kept * keep_content),
            quiet=True,
        )
        images = np.concatenate([images for _, images in samples])
        grouped = images.reshape(settings.num_references, settings.num_samples, *images.shape[1:])
        results[name].append(float(distance(grouped).mean()))
    if jax.process_index() == 0:
        _plot(results, settings.distance, workdir)
    return results


def _distance(config: ConfigDict, network: Frozen | None, mesh: Mesh) -> Distances:
    """The mean distance between all pairs of images in each group."""
    name, batch_size = config.evaluation.variation.distance, config.evaluation.batch_size
    if name == "features":

        def of_features(groups: UInt8[np.ndarray, "R N H W 3"]) -> Float[np.ndarray, "R"]:
            images = groups.reshape(-1, *groups.shape[2:])
            batches = features.of_images(images, mesh, batch_size)
            pool = features.concatenate(features.extract(network, batches)).pool
            pool = pool.reshape(*groups.shape[:2], -1).astype(np.float64)
            first, second = np.triu_indices(groups.shape[1], 1)
            return np.linalg.norm(pool[:, first] - pool[:, second], axis=-1).mean(axis=1)

        return of_features
    lpips = frozen_network(config, "lpips")
    compare = jax.jit(lpips.module.clone(precision="float32").apply)

    def of_lpips(groups: UInt8[np.ndarray, "R N H W 3"]) -> Float[np.ndarray, "R"]:
        first, second = np.triu_indices(groups.shape[1], 1)
        pairs = [groups[:, index].reshape(-1, *groups.shape[2:]) for index in (first, second)]
        parts = zip(
            *(features.of_images(images, mesh, batch_size) for images in pairs),
            strict=True,
        )
        distances = [
            features.gather(compare(lpips.variables, a["image"], b["image"]), a["mask"])
            for a, b in parts
        ]
        return np.concatenate(distances).reshape(len(groups), -1).mean(axis=1)

    return of_lpips


def _plot(results: dict[str, list[float]], distance: str, workdir: str) -> None:
    # Not at the top: they take a second, and nothing else needs them.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5, 3.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name, values in results.items():
        label = "structure" if name.endswith("structure") else "structure and content"
        axes.plot(values, marker="o", label=f"{label} given")
    unit = "LPIPS" if distance == "lpips" else "feature distance"
    axes.set(xlabel="first stages given", ylabel=f"{unit} between samples", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    path = output_directory(workdir, "evaluation") / "variation.png"
    visualize.save_png(path, np.asarray(canvas.buffer_rgba())[..., :3].copy())
    log.info("wrote how samples vary: %s", path)
