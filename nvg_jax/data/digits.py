"""scikit-learn's bundled handwritten digits as a TFDS dataset: real images without a download."""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

_DESCRIPTION = """\
1,797 handwritten digits of 43 writers, 8x8 pixels in 17 grey levels (0 to 16, stored as 0 to 255):
the test set of the UCI data set "Optical Recognition of Handwritten Digits" as it comes with
scikit-learn. The split (1,437 for training, 360 for testing) is stratified by class and fixed.
"""

_CITATION = """\
@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
}
"""

_LICENSE = "Creative Commons Attribution 4.0 International (CC BY 4.0)"
_NUM_TEST = 360
_SPLIT_SEED = 0


class Digits(tfds.core.GeneratorBasedBuilder):
    """Builder of the dataset `digits`: {'image': uint8 [8, 8, 1], 'label': 0..9}.

    Examples stand in the files in the order of scikit-learn, each split by itself.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation=_CITATION,
            license=_LICENSE,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
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
        return {
            "train": self._generate_examples(images, digits.target, np.sort(train)),
            "test": self._generate_examples(images, digits.target, np.sort(test)),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[int, dict]]:
        for index in indices:
            yield int(index), {"image": images[index], "label": int(labels[index])}
