"""scikit-learn's bundled handwritten digits as a TFDS dataset: real images without a download."""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from nvg_jax.data.builder import ImageDataset, png

_NUM_TEST = 360
_SPLIT_SEED = 0


class Digits(ImageDataset):
    """Builder of the dataset `digits`: {'image': uint8 [8, 8, 1], 'label': 0..9}.

    The examples of each split are in the order of scikit-learn.
    """

    DESCRIPTION = """\
1,797 handwritten digits of 43 writers, 8x8 pixels in 17 grey levels (0 to 16, stored as 0 to 255):
the test set of the UCI data set "Optical Recognition of Handwritten Digits" as it comes with
scikit-learn. The split (1,437 for training, 360 for testing) is stratified by class and fixed.
"""
    LICENSE = "Creative Commons Attribution 4.0 International (CC BY 4.0)"
    HOMEPAGE = "https://archive.ics.uci.edu/dataset/80"
    CITATION = """\
@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
}
"""

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        return {"image": png(8, 1), "label": tfds.features.ClassLabel(num_classes=10)}

    def examples(self, split: str) -> Iterator[dict]:
        # Only writing needs scikit-learn; whoever reads the files must not wait for its import.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        train, test = train_test_split(
            np.arange(len(digits.target)),
            test_size=_NUM_TEST,
            random_state=_SPLIT_SEED,
            stratify=digits.target,
        )
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        for index in np.sort(train if split == "train" else test):
            yield {"image": images[index], "label": int(digits.target[index])}
