"""A folder of images by class as a TFDS dataset, which `config.data.dataset=folder:PATH` names.

PATH holds <class>/<image>, or <split>/<class>/<image> where one split is called `train`. If there
is no other split, every tenth image of each class, by name, is held out as `test`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import io
import logging
import os
import pathlib
import random
import re
from collections.abc import Iterator

import tensorflow_datasets as tfds
from PIL import ExifTags, Image

from nvg_jax.data.builder import ImageDataset
from nvg_jax.errors import UserError
from nvg_jax.image_files import read_rgb
from nvg_jax.progress import track

log = logging.getLogger(__name__)

_SUFFIXES = ".avif .bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split()
_LOSSY = ("AVIF", "JPEG", "MPO", "WEBP")
_HELD_OUT = slice(None, None, 10)


class Folder(ImageDataset, skip_registration=True):
    """Builder of {'image': of any size, 'label': by the folders' names, 'file_name': below PATH}.

    The images of a split come in an order drawn once, so that its slices hold all classes. JPEG and
    PNG files are kept as they are if they are RGB or grey, upright and opaque; others are made so.
    Files that cannot be read are named in the log and left out.

    Raises UserError unless `dataset` is 'folder:PATH'.
    """

    DESCRIPTION = "A folder of images by class."

    def __init__(self, dataset: str, data_dir: str = ""):
        _, _, path = dataset.partition(":")
        if not path:
            raise UserError("the dataset folder has to be named with its path, as folder:PATH")
        self.path = pathlib.Path(os.path.realpath(os.path.expanduser(path)))
        words = re.sub(r"[^a-z0-9]+", "_", self.path.name.lower()).strip("_")
        self.name = f"folder_{words}_{_digest([os.fsencode(self.path)])}"
        super().__init__(data_dir=data_dir or None)
        self.state = self.info.metadata.get("state", "")  # Of the folder, when it was prepared.

    @staticmethod
    def is_meant(dataset: str) -> bool:
        return dataset.partition(":")[0] == "folder"

    @functools.cached_property
    def tree(self) -> Tree:
        """What there is to prepare. UserError if it is not as it has to be."""
        tree = Tree.of(self.path)
        tree.check()
        return tree

    def change(self) -> str:
        """What has become of the folder since it was prepared; '' for nothing.

        Without the folder, as on another machine, what was prepared stands for itself.
        """
        if not self.path.is_dir():
            return ""
        tree, count = Tree.of(self.path), self.info.metadata.get("num_files", 0)
        if tree.state == self.state:
            return ""
        return (
            f"{self.path} has changed since it was prepared, when it held {count:,} images; now it "
            f"holds {len(tree.files):,}, some of them new or altered"
        )

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        label = tfds.features.ClassLabel()  # Gets its names in preparing, and by reading the info.
        image, file_name = tfds.features.Image(), tfds.features.Text()
        return {"image": image, "label": label, "file_name": file_name}

    def metadata(self) -> tfds.core.MetadataDict:
        return tfds.core.MetadataDict()

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        tree = self.tree
        self.info.features["label"].names = tree.classes
        self.info.metadata.update(state=tree.state, num_files=len(tree.files))
        if tree.others:
            kinds = (f"{kind} ({count})" for kind, count in tree.others.most_common(5))
            log.info("left out, being no image files: %s", ", ".join(kinds))
        return {split: self._generate_examples(split) for split in tree.splits}

    def examples(self, split: str) -> Iterator[dict]:
        classes = self.tree.splits[split]
        files = [(name, file) for name, files in classes.items() for file in files]
        random.Random(split).shuffle(files)
        kept = collections.Counter()
        for name, file in track(files, split):
            try:
                image = io.BytesIO(encoded(self.path / file))
            except UserError as error:
                log.warning("skipped: %s", error)
                continue
            kept[name] += 1
            file_name = file.encode(errors="replace")  # Names of files may be no text.
            yield {"image": image, "label": name, "file_name": file_name}
        count, skipped = kept.total(), len(files) - kept.total()
        log.info("%s: %d images of %d classes, %d skipped", split, count, len(kept), skipped)
        needed = classes if split == "train" or not kept else ()
        if lacking := [name for name in needed if not kept[name]]:
            raise UserError(f"not one {split} image of {self.path} can be read of {lacking[0]}")


def encoded(path: pathlib.Path) -> bytes:
    """An image as a JPEG or PNG file, grey or RGB, upright, on white where it is transparent.

    Such files are given as they are, others encoded anew. UserError: it cannot be read.
    """
    image, data = read_rgb(path), path.read_bytes()
    with Image.open(io.BytesIO(data)) as original:
        as_is = (
            original.format in ("JPEG", "MPO", "PNG")
            and original.mode in ("RGB", "L")
            and not original.has_transparency_data
            and original.getexif().get(ExifTags.Base.Orientation, 1) == 1
        )
        encoding = "JPEG" if original.format in _LOSSY else "PNG"
    if as_is:
        return data
    file = io.BytesIO()
    image.save(file, encoding, quality=95, subsampling=0)  # PNG heeds neither.
    return file.getvalue()


@dataclasses.dataclass(frozen=True)
class Tree:
    """The image files below a folder, by split and class, and how many others, by their suffix."""

    path: pathlib.Path
    splits: dict[str, dict[str, list[str]]]
    others: collections.Counter

    @classmethod
    def of(cls, path: pathlib.Path) -> Tree:
        """UserError: there is no such folder, or it cannot be looked into."""
        others = collections.Counter()
        try:
            has_splits = "train" in _folders(path) and _folders(path / "train")
            folders = {name: name for name in _folders(path)} if has_splits else {"train": ""}
            splits = {
                split: {
                    name: _images(path, os.path.join(folder, name), others)
                    for name in _folders(path / folder)
                }
                for split, folder in folders.items()
            }
        except OSError as error:
            raise UserError(f"cannot read folder {error.filename}: {error.strerror}") from None
        if splits.keys() == {"train"}:
            splits["test"] = {name: files[_HELD_OUT] for name, files in splits["train"].items()}
            for files in splits["train"].values():
                del files[_HELD_OUT]
        return cls(path, splits, others)

    @property
    def files(self) -> list[str]:
        return [file for each in self.splits.values() for files in each.values() for file in files]

    @property
    def classes(self) -> list[str]:
        return sorted(self.splits["train"])

    @property
    def state(self) -> str:
        """A digest of the files' names, sizes and times."""

        def lines() -> Iterator[bytes]:
            for file in sorted(self.files):
                yield os.fsencode(file)
                try:
                    found = os.stat(os.path.join(self.path, file))
                    yield f"{found.st_size} {found.st_mtime_ns}".encode()
                except OSError:  # A broken link; reading it says so.
                    yield b""

        return _digest(lines())

    def check(self) -> None:
        """Raises UserError unless there are classes, with images of each to train on."""
        layout = "it has to hold <class>/<image>, or train/<class>/<image> beside other splits"
        train = self.splits["train"]
        if not train:
            raise UserError(f"{self.path} has no folders of images: {layout}")
        for split, classes in self.splits.items():
            if not re.fullmatch(r"\w+", split):
                raise UserError(f"{split!r} in {self.path} is no name of a split: rename it")
            if not any(classes.values()):
                raise UserError(f"{self.path} has no images for the split {split}: {layout}")
            if strange := sorted(classes.keys() - train.keys()):
                raise UserError(f"{self.path} has no class {strange[0]} in train, as in {split}")
        for name, files in train.items():
            if [name] != name.strip().splitlines():
                raise UserError(f"{name!r} in {self.path} is no name of a class: rename it")
            if not files and self.splits.get("test", {}).get(name):
                raise UserError(
                    f"{self.path} has one image of {name}: two are the least, as one is held out"
                )
            if not files:
                raise UserError(f"{self.path} has no images of {name}: {layout}")


def _entries(folder: pathlib.Path) -> list[os.DirEntry]:
    """What is not hidden, by name."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(visible, key=lambda entry: entry.name)


def _folders(folder: pathlib.Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _images(path: pathlib.Path, folder: str, others: collections.Counter) -> list[str]:
    """The image files of a folder below `path`, by name; the others are counted in `others`."""
    images = []
    for entry in _entries(path / folder):
        suffix = os.path.splitext(entry.name)[1].lower() or "without a suffix"
        if entry.is_dir():
            others["folders in classes"] += 1
        elif suffix in _SUFFIXES:
            images.append(os.path.join(folder, entry.name))
        else:
            others[suffix] += 1
    return images


def _digest(parts: Iterator[bytes] | list[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part + b"\0")
    return digest.hexdigest()[:12]
