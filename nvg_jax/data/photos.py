"""Crops of scikit-learn's two bundled photographs as a TFDS dataset: no download either."""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from nvg_jax.data.builder import ImageDataset, png

_CLASSES = ("china", "flower")
_SIDE = 96
_TRAIN_WIDTH = 3 / 4
_NUM_CROPS = {"train": 1000, "test": 100}  # Of each photograph.
_SEEDS = {"train": 0, "test": 1}  # Of the crops' sizes and places.


def crop_boxes(split: str, width: int, height: int) -> list[list[tuple[int, int, int, int]]]:
    """For each crop of a split the box (left, upper, right, lower) in every photograph."""
    border = round(_TRAIN_WIDTH * width)
    first, end = (0, border) if split == "train" else (border, width)
    rng = np.random.default_rng(_SEEDS[split])

    def box() -> tuple[int, int, int, int]:
        side = int(rng.integers(_SIDE, min(end - first, height) + 1))
        left = int(rng.integers(first, end - side + 1))
        upper = int(rng.integers(height - side + 1))
        return left, upper, left + side, upper + side

    return [[box() for _ in _CLASSES] for _ in range(_NUM_CROPS[split])]


class Photos(ImageDataset):
    """Builder of the dataset `photos`: {'image': uint8 [96, 96, 3], 'label': china or flower}.

    The classes take turns.
    """

    DESCRIPTION = """\
Square crops of the two photographs that come with scikit-learn, a Chinese temple and a flower, of
random size (96 pixels to the largest that fits) at random places, resized to 96 x 96. Training
crops (1,000 a photograph) come from the left three quarters of each, test crops (100 a photograph)
from the rest, so that they have no pixel in common. The crops and their order are fixed.
"""
    LICENSE = "Creative Commons Attribution 2.0 Generic (CC BY 2.0)"
    HOMEPAGE = "https://scikit-learn.org/stable/datasets/loading_other_datasets.html"
    CITATION = """\
@misc{buechele2011china,
  title = {china.jpg},
  author = {danielbuechele},
  note = {Released under a creative commons license. Attribution: Some rights reserved by
    danielbuechele. Retrieved 21st August, 2011 by Robert Layton for scikit-learn},
  url = {https://www.flickr.com/photos/danielbuechele/6061409035/sizes/z/in/photostream/},
}
@misc{vultilion2011flower,
  title = {flower.jpg},
  author = {vultilion},
  note = {Released under a creative commons license. Retrieved 21st August, 2011 by Robert Layton
    for scikit-learn, whose README links this page and names danielbuechele},
  url = {https://www.flickr.com/photos/vultilion/6056698931/sizes/z/in/photostream/},
}
"""

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        return {"image": png(_SIDE, 3), "label": tfds.features.ClassLabel(names=_CLASSES)}

    def examples(self, split: str) -> Iterator[dict]:
        # Only writing needs scikit-learn; whoever reads the files must not wait for its import.
        from sklearn.datasets import load_sample_image

        photos = [Image.fromarray(load_sample_image(f"{name}.jpg")) for name in _CLASSES]
        for boxes in crop_boxes(split, *photos[0].size):
            for label, (photo, box) in enumerate(zip(photos, boxes, strict=True)):
                # Cropped before it is resized, so that no pixel around the box has a part in it.
                image = photo.crop(box).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
                yield {"image": np.asarray(image), "label": label}
