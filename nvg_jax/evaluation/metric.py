"""What a metric is, and the table of all of them."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from nvg_jax import visualize
from nvg_jax.data import pipeline
from nvg_jax.errors import UserError
from nvg_jax.evaluation import reference, streams
from nvg_jax.evaluation.archive import Samples
from nvg_jax.evaluation.streams import Seen
from nvg_jax.frozen.weights import Frozen
from nvg_jax.tokenizer.model import Tokenizer

log = logging.getLogger(__name__)

# A name for `config.evaluation.metrics`: its file in evaluation/metrics, and its class there. They
# are imported when they are asked for, and shown in this order.
METRICS = {
    "psnr": "psnr.PSNR",
    "ssim": "ssim.SSIM",
    "lpips": "lpips.LPIPS",
    "rfid": "frechet.RFID",
    "codebook_usage": "codebook_usage.CodebookUsage",
    "structure_miou": "structure_miou.StructureMIoU",
    "segments": "segments.SegmentsMetric",
    "fid": "frechet.FID",
    "sfid": "frechet.SFID",
    "inception_score": "inception_score.InceptionScore",
    "precision_recall": "precision_recall.PrecisionRecall",
    "classifier_agreement": "classifier_agreement.ClassifierAgreement",
    "class_agreement": "class_agreement.ClassAgreement",
    "diversity": "diversity.Diversity",
    "guided_iou": "guided_iou.GuidedIoU",
    "variation": "variation.Variation",
    "edited": "edited.Edited",
    "structure_gap": "structure_gap.StructureGap",
    "structure_stability": "structure_stability.StructureStability",
}


class Metric:
    """Something that is measured: `look` says what it takes of a batch on the devices, `update`
    receives that on the host, and `result` is what it makes of all.

    It raises UserError when it is made if the config has not what it needs.

    streams: what it looks at, of 'split' (the images of `config.data.eval_split`) and 'samples'.
    needs: what is prepared for it, of
      'features', 'lpips'  these networks;
      'masks'              `segmentation_mask` in the batches of the split;
      'classes'            the samples' classes;
      'generator'          the model, for samples of its own;
      'reference'          statistics of real images' features, 'reference_spatial' also of spatial
                           ones, 'reference_images' also the features of single images.
    least_samples: how many samples it needs.
    meaningful_from: from how many images on its numbers mean something: below, `measure` warns.
    """

    streams: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()
    least_samples = 0
    meaningful_from = 0

    def __init__(self, config: ConfigDict, num_samples: int):
        """num_samples: how many there will be in the stream 'samples'."""
        self.config, self.num_samples = config, num_samples
        self.parts: list[Any] = []
        self.limit = math.inf  # Rows that `update` keeps.

    @property
    def num_images(self) -> int:
        """Of how many images its numbers are: at first those of the stream 'samples'."""
        return self.num_samples

    @property
    def about(self) -> dict[str, Any]:
        """What else is to be known of its numbers: `evaluation.json` says it in `measured`."""
        return {}

    @property
    def full(self) -> bool:
        """Whether it needs no more: a stream ends early where all metrics are full."""
        return self.limit <= 0

    def look(self, seen: Seen) -> Any:
        """Inside of jit: a tree of arrays [B ...], of a batch."""
        raise NotImplementedError

    def update(self, rows: Any) -> None:
        """Takes what `look` found, as NumPy arrays without the rows past the end: keeps it."""
        if not self.full:
            first = slice(None if self.limit == math.inf else self.limit)
            self.parts.append(jax.tree.map(lambda x: x[first], rows))
            self.limit -= len(jax.tree.leaves(rows)[0])

    def result(self, resources: Resources) -> dict[str, Any]:
        """Names and numbers for `evaluation.json`."""
        raise NotImplementedError


class OfOwnSamples(Metric):
    """One that makes samples of its own from images of the split, and measures these by others.

    `config.evaluation.<name>` says by which (`metrics`), and how many samples (`num_samples`).
    """

    name: str
    streams = ("split",)
    needs = frozenset({"generator"})

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.settings = self.config.evaluation[self.name]
        measuring = kinds(self.settings.metrics, self.settings.num_samples).values()
        self.needs = self.needs.union(*(kind.needs for kind in measuring))
        self.meaningful_from = max(kind.meaningful_from for kind in measuring)
        self.limit = self.settings.num_samples

    @property
    def num_images(self) -> int:
        return self.settings.num_samples

    def rows(self) -> Any:
        """What `look` found of the image of each sample: of the first ones of the split, and again
        from the first on when there are no more."""
        found = streams.concatenate(self.parts)
        index = np.arange(self.num_images) % len(jax.tree.leaves(found)[0])
        return jax.tree.map(lambda x: x[index], found)


@dataclasses.dataclass
class Resources:
    """What metrics may ask for when their streams have ended.

    networks: 'features' and 'lpips', as far as they are needed; `needs` is of all metrics.
    generate: (class ids, purpose of the random numbers, what is given or kept) to uint8 images.
    given_reference: what `config.evaluation.reference` names. samples: those of the stream.
    """

    config: ConfigDict
    workdir: str
    mesh: Mesh
    tokenizer: Tokenizer
    tokenizer_variables: Any
    needs: frozenset[str]
    networks: dict[str, Frozen]
    generate: Callable[..., UInt8[np.ndarray, "N height width 3"]]
    given_reference: reference.Reference | None = None
    samples: Samples | None = None

    @functools.cached_property
    def reference(self) -> reference.Reference:
        """What samples are measured against: the given reference, or else the training split."""
        network, size = self.networks["features"], self.config.evaluation.batch_size
        found = self.given_reference or reference.of_split(
            self.config, self.workdir, network, self.mesh
        )
        wanted = "reference_images" in self.needs and found.features is None
        if wanted or found.pool is None:
            found = reference.looked_at(found, network, self.mesh, size)
        return found

    @functools.cached_property
    def training_images(
        self,
    ) -> tuple[UInt8[np.ndarray, "N height width 3"], Int[np.ndarray, "N"]]:
        """All images of the training split and their classes."""
        parts = []
        data = self.config.data
        for batch in pipeline.evaluation_batches(data, data.train_split, 256):
            images, labels = batch["image"][batch["mask"]], batch["label"][batch["mask"]]
            parts.append((images, labels))
        return streams.concatenate(parts)

    @functools.cached_property
    def judge(self) -> Any:
        """The judge that has learned the classes of the training split, of `judge.fit`."""
        from nvg_jax.evaluation import judge  # scikit-learn takes longer than all else to import.

        return judge.fit(*self.training_images)

    def save_picture(self, name: str, picture: visualize.Picture) -> None:
        """Writes `evaluation/<name>`, by one process."""
        if jax.process_index() == 0:
            visualize.save_png(epath.Path(self.workdir) / "evaluation" / name, picture)


def kinds(names: Collection[str], num_samples: int) -> dict[str, type[Metric]]:
    """The metrics of these names, in the table's order; without samples, of no generator.

    UserError for one that needs more samples.
    """
    found = {}
    for name in (name for name in METRICS if name in names):
        module, kind = METRICS[name].split(".")
        kind = getattr(importlib.import_module(f"nvg_jax.evaluation.metrics.{module}"), kind)
        if not num_samples and (kind.least_samples or "generator" in kind.needs):
            continue
        if num_samples < kind.least_samples:
            raise UserError(
                f"{name} needs at least {kind.least_samples} samples and there are {num_samples}: "
                "use more, or take it out of the metrics"
            )
        found[name] = kind
    return found


def choose(config: ConfigDict, samples: Samples | None) -> list[Metric]:
    """The metrics that `config.evaluation.metrics` names.

    Without samples, in a file or to be made, those of the generator are left out. UserError for
    one that lacks samples, their classes, masks, or something of its own.
    """
    settings = config.evaluation
    count = len(samples.images) if samples else settings.num_samples
    num_classes = config.data.num_classes
    chosen = []
    for name, kind in kinds(settings.metrics, count).items():
        if "classes" in kind.needs and samples and samples.class_ids is None:
            raise UserError(f"{settings.samples} has no classes (arr_1), which {name} needs")
        if "classes" in kind.needs and samples and samples.class_ids.max() >= num_classes:
            raise UserError(
                f"arr_1 of {settings.samples} has class {samples.class_ids.max()}, which {name} "
                f"does not know: config.data.num_classes is {num_classes}"
            )
        chosen.append(kind(config, count))
        if "masks" in kind.needs:
            pipeline.evaluation_batches(config.data, config.data.eval_split, 1, masks=True)
    return chosen


def measure(metrics: list[Metric], resources: Resources) -> list[dict[str, Any]]:
    """The results of each, after one pass over each stream that one of them looks at."""
    config, mesh, size = resources.config, resources.mesh, resources.config.evaluation.batch_size
    for stream in ("split", "samples"):
        looking = [metric for metric in metrics if stream in metric.streams]
        if not looking:
            continue
        if stream == "split":
            masks = "masks" in resources.needs
            batches = streams.of_split(config.data, config.data.eval_split, mesh, size, masks)
        else:
            batches = streams.of_images(*resources.samples, mesh, size, stream)
        seeing = resources.tokenizer, resources.tokenizer_variables, resources.networks
        streams.measure(looking, stream, batches, *seeing)
        del batches  # One that ended early shows no more of how far it is.
    found = [metric.result(resources) for metric in metrics]
    if jax.process_index() == 0 and (warning := of_few_images(metrics, found)):
        log.warning(warning)
    return found


def of_samples(names: Collection[str], resources: Resources, samples: Samples) -> dict[str, Any]:
    """What metrics of these names find in samples, and in nothing else."""
    config, count = resources.config, len(samples.images)
    metrics = [kind(config, count) for kind in kinds(names, count).values()]
    looking = [metric for metric in metrics if "samples" in metric.streams]
    batches = streams.of_images(*samples, resources.mesh, config.evaluation.batch_size)
    seeing = resources.tokenizer, resources.tokenizer_variables, resources.networks
    streams.measure(looking, "samples", batches, *seeing)
    before, resources.samples = resources.samples, samples
    found = {name: x for metric in metrics for name, x in metric.result(resources).items()}
    resources.samples = before
    return found


def of_few_images(metrics: list[Metric], found: list[dict[str, Any]]) -> str:
    """What to say of results that are of too few images, in one line; '' if all are of enough."""
    few: dict[int, list[str]] = {}
    for metric, results in zip(metrics, found, strict=True):
        if metric.num_images < metric.meaningful_from:
            few.setdefault(metric.num_images, []).extend(results)
    if not few:
        return ""
    shown = "; ".join(f"{', '.join(names)} of {count:,} images" for count, names in few.items())
    least = max(metric.meaningful_from for metric in metrics)
    return (
        f"{shown}: below {least:,} images these mean little, and can only be compared with numbers "
        "of as many"
    )
