"""One Grain pipeline from any TFDS image dataset to batches of 8-bit images.

What is read stands in `config.data`, an `ml_collections.ConfigDict` with the fields
  dataset       TFDS name: 'digits', 'imagenet2012', 'name/config:version', ...; or 'folder:PATH',
                a folder of images by class
  data_dir      where it was prepared; '' for TFDS's default (TFDS_DATA_DIR, ~/tensorflow_datasets)
  train_split   e.g. 'train' or 'train[:90%]'
  num_classes   how many classes the model can tell apart
  image_size    side of the square crop in pixels
  resize_ratio  the shorter side is resized to this many times `image_size` before the crop
  num_workers   worker processes that decode and crop; 0 does it in a thread of this process
The dataset needs the features 'image' (uint8) and 'label' (a class); 'segmentation_mask' is read
for whoever asks for it.

Reading needs no TensorFlow. An example's place in the stream and its random crop depend on the
seed and nothing else: not on the number of workers, nor on that of processes.
"""

import dataclasses
import functools
import itertools
import json
import logging
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format
from ml_collections import ConfigDict

from nvg_jax.data import digits, photos, shapes  # noqa: F401  Importing registers them with TFDS.
from nvg_jax.data.examples import Examples, fill_skipped, to_model_types
from nvg_jax.data.folder import Folder
from nvg_jax.data.stream import Batches, Order, training_stream
from nvg_jax.errors import UserError

log = logging.getLogger(__name__)

# For what is only planned with a dataset that is somewhere else.
_PUBLISHED_SIZES = {"imagenet2012": {"train": 1_281_167, "validation": 50_000}}


def load_builder(dataset: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """TFDS builder of a dataset, prepared or not.

    UserError: TFDS knows no such dataset, or cannot read what describes the prepared one; a folder
    that is not prepared does not hold images by class.
    """
    where = f"in {data_dir or tfds.core.constants.DATA_DIR}"
    cannot = f"cannot load dataset {dataset!r} {where}"
    try:
        if Folder.is_meant(dataset):
            builder = Folder(dataset, data_dir)
        else:
            builder = tfds.builder(dataset, data_dir=data_dir or None)
    except UserError:
        raise
    except tfds.core.DatasetNotFoundError:  # Its message lists every dataset of TFDS.
        raise UserError(
            f"unknown dataset {dataset!r}: TFDS has none of that name, and none is prepared {where}"
        ) from None
    except (UnicodeError, json.JSONDecodeError, json_format.ParseError, RuntimeError) as error:
        raise UserError(
            f"{cannot}: its dataset_info.json, features.json or metadata.json is damaged "
            f"({_few_words(error)}): copy it anew, or remove the dataset there and prepare it again"
        ) from None
    except Exception as error:  # Of names, and of descriptions that are odd, TFDS raises anything.
        raise UserError(f"{cannot}: {_few_words(error)}") from None
    if builder.data_path.exists() and not builder.info.splits:
        raise UserError(
            f"{cannot}: {builder.data_path} has no dataset_info.json, or one without splits: copy "
            "it anew, or remove the dataset there and prepare it again"
        )
    if isinstance(builder, Folder) and not builder.data_path.exists():
        builder.tree.check()
    return builder


def _few_words(error: Exception) -> str:
    """What TFDS says, without what it was called with."""
    text = getattr(error, "strerror", None) or str(error).rpartition('": ')[2]
    text = " ".join(text.partition("Here are")[0].splitlines()[:3])  # Then come long lists.
    return " ".join(text.split())[:200].rstrip(".") or type(error).__name__


def num_examples(config: ConfigDict, split: str) -> int:
    """Number of examples of a split such as 'train' or 'train[:90%]'.

    UserError: no such dataset or split, the split is empty, or the dataset is not prepared.
    """
    return _prepared(config, split)[1].num_examples


def contents(config: ConfigDict) -> str:
    """Names what a dataset holds: a folder also by what it was when it was prepared."""
    builder = load_builder(config.dataset, config.data_dir)
    if not (isinstance(builder, Folder) and builder.data_path.exists()):
        return config.dataset
    return f"{config.dataset} ({builder.state})"


def published_num_examples(config: ConfigDict, split: str) -> int | None:
    """As `num_examples`; of a dataset that is not prepared as published, None if unknown."""
    if load_builder(config.dataset, config.data_dir).data_path.exists():
        return num_examples(config, split)
    return _PUBLISHED_SIZES.get(config.dataset.partition(":")[0], {}).get(split)


def has_one_crop(config: ConfigDict) -> bool:
    """Whether every training crop of an image is the same, since all images are square."""
    features = dict(load_builder(config.dataset, config.data_dir).info.features.items())
    shape = features["image"].shape if "image" in features else (None, None)
    return config.resize_ratio == 1 and shape[0] is not None and shape[0] == shape[1]


def train_iterator(config: ConfigDict, order: Order) -> Batches:
    """Training batches of this process, resized and cropped at random, as a `training_stream`.

    They are {'image': uint8 [B, height, width, 3], 'label': int32 [B], 'skipped': int32 [B]}.
    An image that cannot be decoded, or whose file is cut off or damaged, is named in the log;
    another one of its batch stands in its place, and its `skipped` is 1.

    UserError: what `evaluation_batches` raises at once, or the split is smaller than one batch of
    all processes; while iterating, not one image of a batch is decodable.
    """
    examples = _open(config, config.train_split)
    name = f"split {config.train_split!r} of {config.dataset}"
    example = examples.training_example
    return training_stream(name, len(examples), example, fill_skipped, order, config.num_workers)


def crop_batches(config: ConfigDict, split: str, starts: Sequence[int], order: Order) -> Batches:
    """Random training crops by number, for whoever needs the very same ones again.

    Crop n is the (n // N)-th of image n % N, of the N images of the split; it depends on the seed
    and n alone. Batch i holds the `batch_size` crops from number `starts[i]` on.
    """
    examples = _open(config, split)
    crop = functools.partial(examples.numbered_crop, starts, order)
    crops = grain.MapDataset.range(len(starts) * order.batch_size).map(crop)
    batches = crops.batch(order.batch_size)
    return Batches(lambda position: batches[position:], fill_skipped, config.num_workers)


@dataclasses.dataclass(frozen=True)
class EvaluationBatches:
    """Batches of one process; can be iterated any number of times.

    num_examples: of the split, for all processes together.
    """

    begin: Callable[[], Batches]
    num_batches: int
    num_examples: int

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        batches = self.begin()
        try:
            yield from batches
        finally:
            batches.close()


def evaluation_batches(
    config: ConfigDict,
    split: str,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    masks: bool = False,
) -> EvaluationBatches:
    """All examples of a split once, in the order of the files, with the center crop.

    Every process gets the same number of batches of `batch_size`; the processes' batches laid side
    by side, one after the other, are in the order of the files. They are {'image': uint8
    [B, height, width, 3], 'label': int32 [B], 'mask': bool [B]}; rows past the end are black, and
    their `mask` is False. With `masks` there is also 'segmentation_mask', uint8 [B, height, width],
    whose pixels stay with those of the image.

    UserError: no such dataset or split, the dataset is not prepared, is no set of labelled images
    or has no masks; while iterating, an image cannot be decoded or a file not be read.
    """
    examples = _open(config, split, masks)
    num_batches = math.ceil(len(examples) / (batch_size * process_count))
    images = grain.MapDataset.range(num_batches * batch_size * process_count)
    batches = images.map(examples.evaluation_example).batch(batch_size)
    share = batches[process_index::process_count]
    begin = functools.partial(
        Batches, lambda position: share[position:], to_model_types, config.num_workers
    )
    return EvaluationBatches(begin, num_batches, len(examples))


def _prepared(config: ConfigDict, split: str) -> tuple[tfds.core.DatasetBuilder, Any]:
    """The builder of a prepared dataset, and TFDS's info of the split."""
    builder = load_builder(config.dataset, config.data_dir)
    words = ["folder", str(builder.path)] if isinstance(builder, Folder) else [config.dataset]
    where = [f"--data_dir={config.data_dir}"] if config.data_dir else []
    command = shlex.join(["python", "-m", "nvg_jax.data.prepare", *words, *where])
    if not builder.data_path.exists():
        raise UserError(
            f"dataset {config.dataset} is not prepared, there is no {builder.data_path}: run "
            f"`{command}`, or set config.data.data_dir to the folder that holds {builder.name}/"
        )
    if isinstance(builder, Folder):
        _warn_of_change(config.dataset, config.data_dir, builder.state, command)
    splits = builder.info.splits
    try:
        info = splits[split]
    except (ValueError, KeyError) as error:
        sizes = (f"{name} ({each.num_examples} examples)" for name, each in splits.items())
        raise UserError(
            f"unknown split {split!r} of {builder.info.full_name}: there are {', '.join(sizes)} "
            "and slices of them, such as 'train[:90%]'"
        ) from error
    if info.num_examples <= 0:
        raise UserError(f"split {split!r} of {config.dataset} is empty")
    return builder, info


@functools.cache
def _warn_of_change(dataset: str, data_dir: str, state: str, command: str) -> None:
    """Once for what was prepared of a folder, whose `state` it was: looking takes a while."""
    if change := Folder(dataset, data_dir).change():
        log.warning("%s: run `%s` again, until then the images of then are read", change, command)


def _open(config: ConfigDict, split: str, masks: bool = False) -> Examples:
    builder, info = _prepared(config, split)
    features = dict(builder.info.features.items())
    _check_features(config, features, masks)
    shorter_side = round(config.resize_ratio * config.image_size)
    if shorter_side < config.image_size:
        raise UserError(f"config.data.resize_ratio is {config.resize_ratio}: it must be at least 1")
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        records = builder.as_data_source(split, deserialize_method=raw).data_source
    except NotImplementedError as error:
        raise UserError(
            f"dataset {config.dataset} in {builder.data_dir} is not in ArrayRecord files: "
            "prepare it in another data_dir, or remove it and prepare it again"
        ) from error
    except ValueError as error:
        raise UserError(
            f"cannot open split {split!r} of {config.dataset} in {builder.data_dir}: "
            f"{_few_words(error)}"
        ) from error
    # Other features, such as boxes, would be decoded for nothing.
    names = ["image", "label", "file_name"] + ["segmentation_mask"] * masks
    return Examples(
        records,
        tuple(str(file.filename) for file in info.file_instructions),
        tuple(itertools.accumulate(file.take for file in info.file_instructions)),
        tfds.features.FeaturesDict({name: features[name] for name in names if name in features}),
        split,
        config.image_size,
        shorter_side,
    )


def _check_features(config: ConfigDict, features: dict, masks: bool) -> None:
    """UserError if these are not the features of labelled images, and of masks if wanted."""

    def is_picture(name: str) -> bool:
        feature = features.get(name)
        return isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8

    label = features.get("label")
    if not (is_picture("image") and isinstance(label, tfds.features.ClassLabel)):
        raise UserError(
            f"dataset {config.dataset} is no set of labelled images: it needs the features "
            f"'image' (uint8) and 'label' (a class) and has {', '.join(features)}"
        )
    if label.num_classes > config.num_classes:
        raise UserError(
            f"dataset {config.dataset} has {label.num_classes} classes: set "
            f"config.data.num_classes, which is {config.num_classes}, to that"
        )
    name = "segmentation_mask"
    if masks and not (is_picture(name) and features[name].shape[-1] == 1):
        raise UserError(
            f"dataset {config.dataset} has no masks: it needs the feature 'segmentation_mask' "
            f"(uint8, one channel) and has {', '.join(features)}"
        )
