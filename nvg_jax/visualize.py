"""Pictures of images and granularity sequences: grids, structure maps, coarse-to-fine strips.

Every function but `save_png` is pure; a picture is a uint8 array [height, width, 3].
"""

import io
import math
from typing import NamedTuple

import numpy as np
from einops import rearrange, repeat
from etils import epath
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

Picture = UInt8[np.ndarray, "height width 3"]

_MIN_CELL = 64  # pixels: smaller images are magnified to at least this width
_BACKGROUND = 255
_TEXT_COLOUR = (70, 70, 70)


def to_uint8(images: Float[Array | np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Values in [-1, 1] (clipped) to the nearest of 0..255: the inverse of `x / 127.5 - 1`."""
    values = (np.asarray(images, np.float32) + 1) * 127.5
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def magnification(width: int) -> int:
    """The smallest integer factor that makes a cell of this width at least 64 pixels wide."""
    return math.ceil(_MIN_CELL / width)


def grid(
    images: UInt8[np.ndarray, "N H W 3"],
    columns: int | None = None,
    scale: int | None = None,
    padding: int = 2,
) -> Picture:
    """Images in raster order on white, `padding` pixels around each.

    `columns` defaults to the most square grid, `scale` (integer, nearest neighbour, so that every
    pixel the model drew stays visible) to `magnification(W)`.
    """
    scale = magnification(images.shape[2]) if scale is None else scale
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    empty = -len(images) % columns
    images = repeat(images, "n h w c -> n (h p) (w q) c", p=scale, q=scale)
    edges = ((0, empty), (padding, 0), (padding, 0), (0, 0))
    images = np.pad(images, edges, constant_values=_BACKGROUND)
    picture = rearrange(images, "(r c) h w d -> (r h) (c w) d", c=columns)
    return np.pad(picture, ((0, padding), (0, padding), (0, 0)), constant_values=_BACKGROUND)


def structure_picture(labels: Int[np.ndarray, "h w"], stage: int) -> UInt8[np.ndarray, "h w 3"]:
    """Colours the structure of one stage, labels in [0, 2^stage).

    The colours follow the hierarchy: the first three splits divide the colour circle into 2, 4, 8
    hues, the later ones alternate between lightness and hue in ever smaller steps around the
    parent's colour. The only cluster of stage 0 is grey. A cluster has the same colour in every
    image, so that stages side by side read as one refinement.
    """
    return _stage_colours(stage)[labels]


def _stage_colours(stage: int) -> UInt8[np.ndarray, "N 3"]:
    clusters = np.arange(2**stage)
    hue, lightness = np.full(2**stage, 0.9), np.full(2**stage, 0.72)
    hue_step, lightness_step = np.pi / 2, 0.11
    for split in range(1, stage + 1):
        side = 2 * (clusters >> (stage - split) & 1) - 1
        if split <= 3 or split % 2:
            hue = hue + side * hue_step
            hue_step /= 2
        else:
            lightness = lightness + side * lightness_step
            lightness_step /= 2
    chroma = 0.13 if stage else 0.0
    return _oklch_to_srgb(lightness, chroma, hue)


def _oklch_to_srgb(
    lightness: Float[np.ndarray, "N"], chroma: float, hue: Float[np.ndarray, "N"]
) -> UInt8[np.ndarray, "N 3"]:
    """Oklab in polar form (B. Ottosson, 2020) to sRGB: equal steps look about equally large."""
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    cones = lab @ np.array(
        [[1, 1, 1], [0.3963377774, -0.1055613458, -0.0894841775],
         [0.2158037573, -0.0638541728, -1.2914855480]]
    )  # fmt: skip
    linear = cones**3 @ np.array(
        [[4.0767416621, -1.2684380046, -0.0041960863],
         [-3.3077115913, 2.6097574011, -0.7034186147],
         [0.2309699292, -0.3413193965, 1.7076147010]]
    )  # fmt: skip
    linear = np.clip(linear, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * srgb).astype(np.uint8)
