"""What the datasets that this program writes have in common, as TFDS builders."""

from collections.abc import Iterable, Iterator

import tensorflow_datasets as tfds


class ImageDataset(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A fixed set of labelled images; a subclass says what it is, and makes the examples.

    The examples stand in the files in the order in which they are made.
    """

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = LICENSE = CITATION = HOMEPAGE = ""
    SPLITS: Iterable[str] = ("train", "test")

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        """At least an `image` and a `label`."""
        raise NotImplementedError

    def metadata(self) -> tfds.core.Metadata | None:
        """What is kept beside TFDS's info."""
        return None

    def examples(self, split: str) -> Iterable[dict]:
        """The examples of a split: a value for every feature."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(self.features()),
            license=self.LICENSE,
            citation=self.CITATION,
            homepage=self.HOMEPAGE,
            metadata=self.metadata(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        return enumerate(self.examples(split))


def png(side: int, channels: int) -> tfds.features.Image:
    """The feature of square pictures."""
    return tfds.features.Image(shape=(side, side, channels), encoding_format="png")
