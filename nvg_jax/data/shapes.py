"""Rendered scenes of one coloured shape with its mask as a TFDS dataset."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw

from nvg_jax.data.builder import ImageDataset, png

SHAPES = ("circle", "square", "triangle", "star")
PALETTE = {
    "red": (215, 50, 50),
    "green": (55, 170, 70),
    "blue": (50, 95, 215),
    "yellow": (225, 195, 50),
}
# The class of a scene is len(PALETTE) * its shape + its colour.
CLASSES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in PALETTE)

_SIDE = 64
_BORDER = 1  # Pixels around the object.
_SUPERSAMPLING = 4
_SHARE_OF_PICTURE = (0.12, 0.5)  # Less where a shape of that rotation would not fit.
_SHARE_IN_CROWD = (0.05, 0.25)
_STAR_WAIST = 0.5  # Radius of the inner corners, of that of the tips.


class Split(NamedTuple):
    """num_scenes: a multiple of the classes. seed: of everything random about them."""

    num_scenes: int
    seed: int


SPLITS = {"train": Split(8000, 0), "test": Split(800, 1)}


def scene(
    split: str, index: int
) -> tuple[UInt8[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"]]:
    """A scene of a split and which pixels are the object's; `label_of(index)` is its class.

    It depends on the split and the index alone. Pixels that the object covers by at least a half
    are its own.
    """
    rng = np.random.default_rng((SPLITS[split].seed, index))
    coverage, inside = _object(label_of(index), _SHARE_OF_PICTURE, rng)
    image = coverage[..., None] * inside + (1 - coverage[..., None]) * _background(rng)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), coverage >= 0.5


def crowd(
    split: str, index: int
) -> tuple[UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width"]]:
    """A scene with two to four objects, of which later ones lie before earlier ones.

    Its mask is 0 for the background and n for the n-th object. The last is of class
    `label_of(index)`, the others of any. As `scene` in all else.
    """
    rng = np.random.default_rng((SPLITS[split].seed, index, 1))
    classes = [*rng.integers(len(CLASSES), size=rng.integers(1, 4)).tolist(), label_of(index)]
    image, mask = _background(rng), np.zeros((_SIDE, _SIDE), np.uint8)
    for number, label in enumerate(classes, start=1):
        coverage, inside = _object(label, _SHARE_IN_CROWD, rng)
        image = coverage[..., None] * inside + (1 - coverage[..., None]) * image
        mask[coverage >= 0.5] = number
    return np.clip(np.round(image), 0, 255).astype(np.uint8), mask


def label_of(index: int) -> int:
    """Class of the scenes of this index: the classes take turns."""
    return index % len(CLASSES)


def segment(
    images: UInt8[np.ndarray, "N height width 3"], labels: Int[np.ndarray, "N"]
) -> Bool[np.ndarray, "N height width"]:
    """The object of each scene, rendered or generated, found by the colour of its class.

    A pixel belongs to it if, its grey part taken away, it is closest to the hue of that colour
    among those of the palette, and at least half as colourful: at the object's edge, where it
    blends into the grey background, that is half of the pixel covered.
    """
    palette = np.array(list(PALETTE.values()), np.float32)
    palette -= palette.mean(-1, keepdims=True)
    colourfulness = np.linalg.norm(palette, axis=-1)
    chroma = images - images.mean(-1, keepdims=True, dtype=np.float32)
    along = chroma @ (palette / colourfulness[:, None]).T
    colour = (labels % len(PALETTE))[:, None, None]
    strength = np.take_along_axis(along, colour[..., None], axis=-1)[..., 0]
    return (along.argmax(-1) == colour) & (strength >= 0.5 * colourfulness[colour])


def _object(
    label: int, shares: tuple[float, float], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width 3"]]:
    """How much of each pixel an object of a class covers, and the colour that it has there."""
    shape, colour = divmod(label, len(PALETTE))
    coverage = _coverage(SHAPES[shape], shares, rng)
    brightness = rng.uniform(0.85, 1.1) + rng.uniform(0.0, 0.12) * (2 * _gradient(rng) - 1)
    return coverage, brightness[..., None] * np.array(list(PALETTE.values())[colour])


def _coverage(
    shape: str, shares: tuple[float, float], rng: np.random.Generator
) -> Float[np.ndarray, "height width"]:
    """How much of each pixel an object covers whose share of the picture is in these bounds."""
    corners = _outline(shape) * np.exp(1j * rng.uniform(0.0, 2 * np.pi))
    corners = np.stack([corners.real, corners.imag], axis=-1)
    x, y = corners.T
    area = np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    extent = corners.max(0) - corners.min(0)
    room = _SIDE - 2 * _BORDER
    smallest, largest = shares
    largest = min(largest, area * (room / extent.max() / _SIDE) ** 2)
    scale = _SIDE * np.sqrt(rng.uniform(smallest, largest) / area)
    place = _BORDER + rng.uniform(0.0, room - scale * extent)
    corners = scale * (corners - corners.min(0)) + place
    picture = Image.new("L", (_SUPERSAMPLING * _SIDE,) * 2)
    # Pillow counts from the middle of the first pixel, not from its edge.
    corners = _SUPERSAMPLING * corners - 0.5
    ImageDraw.Draw(picture).polygon(list(map(tuple, corners)), fill=255)
    return np.asarray(picture.reduce(_SUPERSAMPLING)) / 255


def _outline(shape: str) -> np.ndarray:
    """Corners of the shape on the complex plane, around 0."""
    num_corners = {"circle": 96, "square": 4, "triangle": 3, "star": 10}[shape]
    corners = np.exp(2j * np.pi * np.arange(num_corners) / num_corners)
    if shape == "star":
        corners[1::2] *= _STAR_WAIST
    return corners


def _background(rng: np.random.Generator) -> Float[np.ndarray, "height width 3"]:
    """A texture between two colours that are nearly grey."""
    texture = (_gradient, _stripes, _checks, _noise)[rng.integers(4)](rng)[..., None]
    middle, contrast = rng.uniform(60.0, 195.0), rng.uniform(20.0, 110.0)
    sign = rng.choice((-1.0, 1.0))
    first, second = (
        middle + direction * contrast / 2 + rng.uniform(-9.0, 9.0, 3) for direction in (sign, -sign)
    )
    return np.clip(first + (second - first) * texture, 0, 255)


def _gradient(rng: np.random.Generator) -> Float[np.ndarray, "height width"]:
    """From 0 on one side of the picture to 1 on the other."""
    position = _positions(rng.uniform(0.0, 2 * np.pi))
    return (position - position.min()) / np.ptp(position)


def _stripes(rng: np.random.Generator) -> Float[np.ndarray, "height width"]:
    return (1 + _wave(rng.uniform(0.0, np.pi), rng.uniform(6.0, 18.0), rng)) / 2


def _checks(rng: np.random.Generator) -> Float[np.ndarray, "height width"]:
    angle, period = rng.uniform(0.0, np.pi), rng.uniform(10.0, 24.0)
    return (1 + _wave(angle, period, rng) * _wave(angle + np.pi / 2, period, rng)) / 2


def _noise(rng: np.random.Generator) -> Float[np.ndarray, "height width"]:
    knots = rng.random((int(rng.integers(4, 11)),) * 2, np.float32)
    smooth = Image.fromarray(knots).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    return np.clip(smooth, 0.0, 1.0).astype(np.float64)


def _wave(
    angle: float, period: float, rng: np.random.Generator
) -> Float[np.ndarray, "height width"]:
    """Bands of -1 and 1 of equal width with soft edges, `period` pixels from one to the next."""
    phase = 2 * np.pi * (_positions(angle) / period + rng.random())
    return np.clip(period / 4 * np.sin(phase), -1.0, 1.0)


def _positions(angle: float) -> Float[np.ndarray, "height width"]:
    """How far each pixel lies in this direction."""
    along = np.arange(_SIDE) + 0.5
    return np.cos(angle) * along[None] + np.sin(angle) * along[:, None]


class Shapes(ImageDataset):
    """Builder of the dataset `shapes`: 8,000 scenes for training and 800 for testing.

    {'image': uint8 [64, 64, 3], 'label': 0..15, 'segmentation_mask': uint8 [64, 64, 1], 1 where
    the object is}.
    """

    DESCRIPTION = """\
Scenes of 64 x 64 pixels with one shape (circle, square, triangle or star) in one colour (red,
green, blue or yellow) of random size, place, rotation and shading before a greyish gradient,
stripes, checks or smooth noise. The class is shape and colour; the mask says which pixels belong
to the shape. The scenes and their order are fixed, and the classes take turns.
"""
    LICENSE = "Apache License 2.0, as the program that renders it"
    SCENE = staticmethod(scene)

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        return {
            "image": png(_SIDE, 3),
            "label": tfds.features.ClassLabel(names=CLASSES),
            "segmentation_mask": png(_SIDE, 1),
        }

    def examples(self, split: str) -> Iterator[dict]:
        for index in range(SPLITS[split].num_scenes):
            image, mask = self.SCENE(split, index)
            mask = mask[..., None].astype(np.uint8)
            yield {"image": image, "label": label_of(index), "segmentation_mask": mask}


class Crowds(Shapes):
    """Builder of the dataset `crowds`: as many scenes with two to four objects, see `crowd`."""

    DESCRIPTION = """\
Scenes as those of the dataset shapes with two to four shapes, which may hide each other. The mask
says which pixels belong to which shape; the class is that of the one in front.
"""

    SCENE = staticmethod(crowd)
