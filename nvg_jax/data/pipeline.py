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
import io
import logging
import math
import shlex
from collections.abc import Iterator, Sequence

import grain
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from ml_collections import ConfigDict
from PIL import Image

from nvg_jax.data import digits, photos, shapes  # noqa: F401  Importing registers them with TFDS.
from nvg_jax.data.stream import read_ahead, training_stream
from nvg_jax.errors import UserError

log = logging.getLogger(__name__)

# Mode and resampling of the features that are pictures. Between two segments there is nothing.
_PICTURES = {
    "image": ("RGB", Image.Resampling.LANCZOS),
    "segmentation_mask": ("L", Image.Resampling.NEAREST),
}

# What Pillow raises for damaged files of the formats it reads.
_DECODING_ERRORS = (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError)


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


def train_iterator(
    config: ConfigDict,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Endless shuffled training batches of this process, resized and cropped at random.

    The stream of all processes together holds every image once an epoch, each epoch in another
    order; a batch may reach into the next epoch, so nothing is dropped. An image that cannot be
    decoded is named in the log, and another one of its batch stands in its place.

    `get_state` gives a JSON dict, the same on every process. `set_state` goes on from it exactly,
    also with another number of workers or processes. Call `close` to end the worker processes.

    Args:
      config: `config.data`.
      batch_size: images per batch of this process.
      seed: of order and crops, in [0, 2^32).
      process_index: this process, of `process_count` that each read their share.
      process_count: number of processes.

    Returns:
      Iterator over {'image': float32 [B, H, W, 3] in [-1, 1], 'label': int32 [B],
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
        _finish,
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
    and n alone. An image that cannot be decoded is named in the log, and another one of its batch
    stands in its place. Call `close` to end the worker processes.

    Args:
      config: `config.data`.
      split: e.g. 'train'.
      starts: the first number of each batch; a batch holds that crop and those that follow.
      batch_size: crops per batch.
      seed: of the crops, at least 0.

    Returns:
      Iterator over as many batches as there are `starts`, like those of `train_iterator`.

    Raises:
      UserError: as `train_iterator`, but for the size of the split.
    """
    examples = _open(config, split)
    crop = functools.partial(examples.numbered_crop, starts, batch_size, seed)
    crops = grain.MapDataset.range(len(starts) * batch_size).map(crop)
    return iter(read_ahead(crops.batch(batch_size), config.num_workers).map(_finish))


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

    Every process gets the same number of batches of the same size; the processes' batches laid
    side by side, step after step, are in the order of the files. Rows past the end are black.

    Args:
      config: `config.data`.
      split: e.g. 'test' or 'validation'.
      batch_size: images per batch of this process.
      process_index: this process, of `process_count` that each read their share.
      process_count: number of processes.
      masks: also read 'segmentation_mask', whose pixels stay with those of the image.

    Returns:
      Iterable of {'image': float32 [B, H, W, 3] in [-1, 1], 'label': int32 [B],
      'mask': bool [B], False in rows past the end of the split}, with `masks` also
      'segmentation_mask': uint8 [B, H, W], 0 in these rows.

    Raises:
      UserError: no such dataset or split, the dataset is not prepared, or it has no masks; while
        iterating, an image cannot be decoded.
    """
    examples = _open(config, split, masks=masks)
    num_batches = math.ceil(len(examples) / (batch_size * process_count))
    images = grain.MapDataset.range(num_batches * batch_size * process_count)
    batches = images.map(examples.evaluation_example).batch(batch_size)
    share = read_ahead(batches[process_index::process_count], config.num_workers)
    return EvaluationBatches(share.map(_to_model_types), num_batches, len(examples))


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Random access to the examples of a split.

    It holds the record files and not the TFDS source around them, because that one pickles
    its builder along, which the worker processes could not always import.
    """

    records: ArrayRecordDataSource
    features: tfds.features.FeaturesDict
    split: str
    image_size: int
    shorter_side: int

    def __len__(self) -> int:
        return len(self.records)

    @property
    def pictures(self) -> list[str]:
        return [name for name in _PICTURES if name in self.features]

    def training_example(self, index: int, rng: np.random.Generator) -> dict:
        try:
            pictures, label = self._read(index)
        except UserError as error:
            log.warning("skipped: %s", error)
            return self._black() | {"label": 0, "skipped": 1}
        places = (side - self.image_size + 1 for side in pictures["image"].size)
        left, top = (int(rng.integers(count)) for count in places)
        return self._crop(pictures, left, top) | {"label": label, "skipped": 0}

    def numbered_crop(self, starts: Sequence[int], batch_size: int, seed: int, index: int) -> dict:
        number = starts[index // batch_size] + index % batch_size
        turn, image = divmod(number, len(self))
        return self.training_example(image, np.random.default_rng((seed, turn, image)))

    def evaluation_example(self, index: int) -> dict:
        if index >= len(self):
            return self._black() | {"label": 0, "mask": False}
        pictures, label = self._read(index)
        left, top = ((side - self.image_size) // 2 for side in pictures["image"].size)
        return self._crop(pictures, left, top) | {"label": label, "mask": True}

    def _read(self, index: int) -> tuple[dict[str, Image.Image], int]:
        """The pictures, resized, and the label. Raises UserError if one cannot be decoded."""
        decoders = {name: tfds.decode.SkipDecoding() for name in self.pictures}
        example = self.features.deserialize_example_np(self.records[index], decoders=decoders)
        pictures = {name: self._picture(example, name, index) for name in self.pictures}
        return pictures, example["label"]

    def _picture(self, example: dict, name: str, index: int) -> Image.Image:
        mode, resampling = _PICTURES[name]
        try:
            with Image.open(io.BytesIO(example[name])) as encoded:
                picture = encoded.convert(mode)
        except _DECODING_ERRORS as error:
            file_name = example.get("file_name", b"").decode(errors="replace")
            raise UserError(
                f"{name} {file_name or f'{self.split}[{index}]'} cannot be decoded "
                f"({type(error).__name__}): replace it and prepare the dataset again"
            ) from error
        width, height = picture.size
        scale_to, shorter = self.shorter_side, min(width, height)
        return picture.resize(
            (scale_to * width // shorter, scale_to * height // shorter), resampling
        )

    def _crop(self, pictures: dict[str, Image.Image], left: int, top: int) -> dict[str, np.ndarray]:
        box = (left, top, left + self.image_size, top + self.image_size)
        return {name: np.asarray(picture.crop(box)) for name, picture in pictures.items()}

    def _black(self) -> dict[str, np.ndarray]:
        size = (self.image_size, self.image_size)
        return {name: np.asarray(Image.new(_PICTURES[name][0], size)) for name in self.pictures}


def _open(config: ConfigDict, split: str, masks: bool = False) -> _Examples:
    builder = _prepared_builder(config)
    if not _num_examples(builder, split):
        raise UserError(f"split {split!r} of {config.dataset} is empty")
    features = dict(builder.info.features.items())
    image, label = features.get("image"), features.get("label")
    if not (
        isinstance(image, tfds.features.Image)
        and image.np_dtype == np.uint8
        and isinstance(label, tfds.features.ClassLabel)
    ):
        raise UserError(
            f"dataset {config.dataset} is no set of labelled images: it needs the features "
            f"'image' (uint8) and 'label' (a class) and has {', '.join(features)}"
        )
    if label.num_classes > config.num_classes:
        raise UserError(
            f"dataset {config.dataset} has {label.num_classes} classes: set "
            f"config.data.num_classes, which is {config.num_classes}, to that"
        )
    mask = features.get("segmentation_mask")
    if masks and not (
        isinstance(mask, tfds.features.Image) and mask.np_dtype == np.uint8 and mask.shape[-1] == 1
    ):
        raise UserError(
            f"dataset {config.dataset} has no masks: it needs the feature 'segmentation_mask' "
            f"(uint8, one channel) and has {', '.join(features)}"
        )
    try:
        source = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
    except NotImplementedError as error:
        raise UserError(
            f"dataset {config.dataset} in {builder.data_dir} is not in ArrayRecord files: "
            "prepare it in another data_dir, or remove it and prepare it again"
        ) from error
    shorter_side = round(config.resize_ratio * config.image_size)
    if shorter_side < config.image_size:
        raise UserError(f"config.data.resize_ratio is {config.resize_ratio}: it must be at least 1")
    # Other features, such as boxes, would be decoded for nothing.
    names = ["image", "label", "file_name"] + ["segmentation_mask"] * masks
    used = {name: features[name] for name in names if name in features}
    return _Examples(
        source.data_source, tfds.features.FeaturesDict(used), split, config.image_size, shorter_side
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


def _fill_skipped(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Puts the next decodable example of the batch, cyclically, where one was skipped."""
    (decoded,) = np.nonzero(batch["skipped"] == 0)
    count = len(batch["skipped"])
    if len(decoded) == count:
        return batch
    if not len(decoded):
        raise UserError(f"not one image of a batch of {count} can be decoded: see the log")
    rows = decoded[np.searchsorted(decoded, np.arange(count)) % len(decoded)]
    return batch | {"image": batch["image"][rows], "label": batch["label"][rows]}


def _finish(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return _to_model_types(_fill_skipped(batch))


def _to_model_types(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs in the main process: bytes are a quarter of the floats to hand over."""
    image = np.divide(batch["image"], 127.5, dtype=np.float32)
    image -= 1
    others = {
        name: value.astype(np.int32) if value.dtype == np.int64 else value
        for name, value in batch.items()
    }
    return others | {"image": image}
