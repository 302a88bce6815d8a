"""Small datasets of every kind that there are, and what is written into them."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from nvg_jax.data.builder import ImageDataset

GARBAGE = b"\x89PNG\r\n\x1a\n but nothing more"


def encoded_photo(index: int) -> bytes:
    """A JPEG as ImageNet has them: of any shape, now and then grey or CMYK."""
    rng = np.random.default_rng(index)
    width, height = 40 + 7 * index, 70 - 4 * index
    pixels = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    image = image.convert({3: "L", 5: "CMYK"}.get(index, "RGB"))
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def encoded_pixels(index: int) -> bytes:
    """A PNG of 8 x 8 random pixels."""
    pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
    return png(Image.fromarray(pixels))


def masked_photo(index: int) -> tuple[Image.Image, Image.Image]:
    """A picture of any shape, black but for white blocks, and a mask with a number for each."""
    rng = np.random.default_rng(index)
    rows, columns = 5 + index, 8 - index
    numbers = rng.integers(1, 256, (rows, columns), np.uint8) * rng.integers(0, 2, (rows, columns))
    mask = Image.fromarray(np.kron(numbers, np.ones((10, 10))).astype(np.uint8))
    return mask.point(lambda number: 255 * (number > 0)).convert("RGB"), mask


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


PHOTOS = {
    "train": [encoded_photo(index) for index in range(8)],
    "validation": [encoded_photo(index) for index in range(7)],
    "damaged": [encoded_photo(0), encoded_photo(1)[:300], encoded_photo(2)],
}
PIXELS = {
    "train": [encoded_pixels(index) for index in range(12)],
    "damaged": [GARBAGE if index in (2, 3, 9) else encoded_pixels(index) for index in range(10)],
    "hopeless": [GARBAGE] * 4,
}
MASKED = {
    "test": [tuple(map(png, masked_photo(index))) for index in range(5)],
    "damaged": [tuple(map(png, masked_photo(0))), (png(masked_photo(1)[0]), GARBAGE)],
}


def _image(encoding="png", shape=None):
    return tfds.features.Image(shape=shape, encoding_format=encoding)


class TinyPhotos(ImageDataset):
    """The layout of imagenet2012: JPEGs of any shape, a label, and a file name."""

    SPLITS = PHOTOS

    def features(self):
        label, name = tfds.features.ClassLabel(num_classes=8), tfds.features.Text()
        return {"image": _image("jpeg"), "label": label, "file_name": name}

    def examples(self, split):
        for index, data in enumerate(PHOTOS[split]):
            name = f"{split}_{index}.JPEG"
            yield {"image": io.BytesIO(data), "label": index, "file_name": name}


class TinyPixels(ImageDataset):
    """PNGs and labels, as most small datasets."""

    SPLITS = PIXELS

    def features(self):
        return {"image": _image(), "label": tfds.features.ClassLabel(num_classes=12)}

    def examples(self, split):
        for index, data in enumerate(PIXELS[split]):
            yield {"image": io.BytesIO(data), "label": index}


class TinyMasked(ImageDataset):
    """PNGs, labels, and masks as TFDS calls them."""

    SPLITS = MASKED
    MASK_CHANNELS = 1

    def features(self):
        mask = _image(shape=(None, None, self.MASK_CHANNELS))
        label = tfds.features.ClassLabel(num_classes=8)
        return {"image": _image(), "label": label, "segmentation_mask": mask}

    def examples(self, split):
        for index, (image, mask) in enumerate(MASKED[split]):
            pictures = {"image": io.BytesIO(image), "segmentation_mask": io.BytesIO(mask)}
            yield pictures | {"label": index}


class TinyColourMasked(TinyMasked):
    """Masks of three channels are none."""

    MASK_CHANNELS = 3


class TinyUnlabelled(ImageDataset):
    """Images alone."""

    SPLITS = ("train",)

    def features(self):
        return {"image": _image()}

    def examples(self, split):
        yield {"image": io.BytesIO(encoded_pixels(0))}


BUILDERS = (TinyPhotos, TinyPixels, TinyMasked, TinyColourMasked, TinyUnlabelled)
