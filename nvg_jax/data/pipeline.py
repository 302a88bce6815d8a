"""One Grain pipeline from any TFDS image dataset to batches of float32 images.

What is read stands in `config.data`, an `ml_collections.ConfigDict` with the fields
  dataset       TFDS name: 'digits', 'imagenet2012', 'name/config:version', ...
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
import math
import shlex
from collections.abc import Iterator, Sequence

import grain
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from nvg_jax.data import digits, photos, shapes  # noqa: F401  Importing registers them with TFDS.
from nvg_jax.data.examples import Examples, to_model_types
from nvg_jax.data.stream import read_ahead, training_stream
from nvg_jax.errors import UserError

# For what is only planned with a dataset that is somewhere else.
_PUBLISHED_SIZES = {"imagenet2012": {"train": 1_281_167, "validation": 50_000}}


def load_builder(dataset: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """TFDS builder of a dataset, prepared or not. `data_dir` '' stands for TFDS's default.

    Raises:
      UserError: TFDS knows no such dataset, config or version.
    """
    try:
        return tfds.builder(dataset, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError:
        # Its message lists every dataset of TFDS.
        reason = "TFDS has none of that name"
    except (ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
    raise UserError(f"unknown dataset {dataset!r}: {reason}")


def num_examples(config: ConfigDict, split: str) -> int:
    """Number of examples of a split such as 'train' or 'train[:90%]' of the prepared dataset.

    Raises:
      UserError: no such dataset or split, or the dataset is not prepared.
    """
    return _num_examples(_prepared_builder(config), split)


def published_num_examples(config: ConfigDict, split: str) -> int | None:
    """As `num_examples`; of a dataset that is not prepared as published, None if unknown."""
    if load_builder(config.dataset, config.data_dir).data_path.exists():
        return num_examples(config, split)
    return _PUBLISHED_SIZES.get(config.dataset.partition(":")[0], {}).get(split)


def train_iterator(
    config: ConfigDict,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Endless training batches of this process, resized and cropped at random.

    Their order, their state and the arguments are those of `stream.training_stream`. An image that
    cannot be decoded is named in the log, and another one of its batch stands in its place. So it
    is where records of a file cannot be read, as it is cut off or damaged; the file is named once.

    Returns:
      Iterator over {'image': float32 [B, height, width, 3] in [-1, 1], 'label': int32 [B],
      'skipped': int32 [B], 1 where an undecodable image was passed over}.

    Raises:
      UserError: no such dataset or split, the dataset is not prepared, or the split is smaller
        than one batch of all processes; while iterating, not one image of a batch is decodable.
    """
    examples = _open(config, config.train_split)
    return training_stream(
        f"split {config.train_split!r} of {config.dataset}",
        len(examples),
        examples.training_example,
        examples.finish,
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        num_workers=config.num_workers,
    )


def crop_batches(
    config: ConfigDict, split: str, starts: Sequence[int], *, batch_size: int, seed: int
) -> grain.DatasetIterator:
    """Random training crops by number, for whoever needs the very same ones again.

    Crop n is the (n // N)-th of image n % N, of the N images of the split; it depends on the seed
    and n alone. Batch i holds the `batch_size` crops from number `starts[i]` on; batches, errors
    and `close` are as in `train_iterator`.
    """
    examples = _open(config, split)
    crop = functools.partial(examples.numbered_crop, starts, batch_size, seed)
    crops = grain.MapDataset.range(len(starts) * batch_size).map(crop)
    return iter(read_ahead(crops.batch(batch_size), config.num_workers).map(examples.finish))


@dataclasses.dataclass(frozen=True)
class EvaluationBatches:
    """Batches of one process; can be iterated any number of times.

    Attributes:
      batches: as `evaluation_batches` describes them.
      num_batches: number of them, also `len`.
      num_examples: examples of the split, for all processes together.
    """

    batches: grain.IterDataset
    num_batches: int
    num_examples: int

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        iterator = iter(self.batches)
        try:
            yield from iterator
        finally:
            iterator.close()


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
    by side, one after the other, are in the order of the files. Rows past the end are black.

    Returns:
      Iterable of {'image': float32 [B, height, width, 3] in [-1, 1], 'label': int32 [B],
      'mask': bool [B], False in rows past the end of the split}, with `masks` also
      'segmentation_mask': uint8 [B, height, width], whose pixels stay with those of the image.

    Raises:
      UserError: no such dataset or split, the dataset is not prepared, or it has no masks; while
        iterating, an image cannot be decoded or a file not be read.
    """
    examples = _open(config, split, masks=masks)
    num_batches = math.ceil(len(examples) / (batch_size * process_count))
    images = grain.MapDataset.range(num_batches * batch_size * process_count)
    batches = images.map(examples.evaluation_example).batch(batch_size)
    share = read_ahead(batches[process_index::process_count], config.num_workers)
    return EvaluationBatches(share.map(to_model_types), num_batches, len(examples))


def _open(config: ConfigDict, split: str, masks: bool = False) -> Examples:
    builder = _prepared_builder(config)
    if not _num_examples(builder, split):
        raise UserError(f"split {split!r} of {config.dataset} is empty")
    features = dict(builder.info.features.items())
    _check_features(config, features, masks)
    shorter_side = round(config.resize_ratio * config.image_size)
    if shorter_side < config.image_size:
        raise UserError(f"config.data.resize_ratio is {config.resize_ratio}: it must be at least 1")
    try:
        source = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
    except NotImplementedError as error:
        raise UserError(
            f"dataset {config.dataset} in {builder.data_dir} is not in ArrayRecord files: "
            "prepare it in another data_dir, or remove it and prepare it again"
        ) from error
    # Other features, such as boxes, would be decoded for nothing.
    names = ["image", "label", "file_name"] + ["segmentation_mask"] * masks
    files = builder.info.splits[split].file_instructions
    return Examples(
        source.data_source,
        tuple(str(file.filename) for file in files),
        tuple(itertools.accumulate(file.take for file in files)),
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


def _prepared_builder(config: ConfigDict) -> tfds.core.DatasetBuilder:
    builder = load_builder(config.dataset, config.data_dir)
    if not builder.data_path.exists():
        command = ["python", "-m", "nvg_jax.data.prepare", config.dataset]
        if config.data_dir:
            command.append(f"--data_dir={config.data_dir}")
        raise UserError(f"dataset {config.dataset} is not prepared: run `{shlex.join(command)}`")
    return builder


def _num_examples(builder: tfds.core.DatasetBuilder, split: str) -> int:
    splits = builder.info.splits
    try:
        return splits[split].num_examples
    except (ValueError, KeyError) as error:
        raise UserError(
            f"unknown split {split!r} of {builder.info.full_name}: there are {', '.join(splits)} "
            "and slices of them, such as 'train[:90%]'"
        ) from error
