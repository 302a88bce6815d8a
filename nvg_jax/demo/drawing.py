"""What is drawn on the page: maps of levels, masks, and maps to begin with."""

from __future__ import annotations

import itertools

import numpy as np
from einops import reduce
from jaxtyping import Bool, Int, UInt8

from nvg_jax import control, granularity
from nvg_jax.errors import UserError

Picture = UInt8[np.ndarray, "_ _ _"]

# The colours of four levels, from dark to bright; two have the first and the last.
PALETTE = np.array([[0, 0, 0], [49, 104, 142], [53, 183, 121], [253, 231, 37]], np.uint8)
SIDE = 256  # Pixels of what is drawn on, or the next multiple of the model's image.
_CELLS = 4  # A map is read as the main level of this many places along a latent's position.
_MASK_ALPHA = 128

# Shapes upon each other, each a level higher than the one before.
EXAMPLES = {
    "circle": ["circle:0.5,0.5,0.4"],
    "left half": ["left"],
    "small spot": ["circle:0.35,0.4,0.15"],
    "shirt": ["rect:0.3,0.1,0.7,0.9+rect:0.05,0.1,0.95,0.35"],
    "trousers": ["rect:0.25,0.05,0.75,0.25+rect:0.25,0.05,0.45,0.95+rect:0.55,0.05,0.75,0.95"],
    "rings (4)": ["circle:0.5,0.5,0.45", "circle:0.5,0.5,0.32", "circle:0.5,0.5,0.18"],
    "stairs (4)": ["rect:0.25,0,1,1", "rect:0.5,0,1,1", "rect:0.75,0,1,1"],
}


def side(image_size: int) -> int:
    """The width of what is drawn on: a multiple of the image's."""
    return image_size * -(-SIDE // image_size)


def example(name: str, width: int) -> Picture:
    """A map of EXAMPLES in the colours of its levels."""
    layers = [_union(shapes, width) for shapes in EXAMPLES[name]]
    return colours(4 if len(layers) > 1 else 2)[sum(layers)]


def colours(count: int) -> UInt8[np.ndarray, "{count} 3"]:
    """Of two or four levels."""
    return PALETTE if count > 2 else PALETTE[[0, -1]]


def _union(shapes: str, width: int) -> Int[np.ndarray, "width width"]:
    return np.maximum.reduce([control.draw_shape(shape, width) for shape in shapes.split("+")])


def levels_of(drawn: Picture | None, grid: tuple[int, int], count: int) -> control.Levels:
    """The level, of two or four, that covers most of each place of a drawn map.

    UserError: nothing was drawn.
    """
    if drawn is None:
        raise UserError("draw a map first, or choose an example")
    rows, columns = (_CELLS * cells for cells in grid)
    drawn = _fitted(drawn[..., :3], rows, columns).astype(int)
    known = colours(count).astype(int)
    levels = np.stack([((drawn - colour) ** 2).sum(axis=-1) for colour in known]).argmin(axis=0)
    is_level = levels == np.arange(len(known))[:, None, None]
    count_in_each = reduce(is_level, "n (h p) (w q) -> n h w", "sum", h=rows, w=columns)
    return count_in_each.argmax(axis=0)


def mask_of(layers: list[Picture] | None, size: int) -> Bool[np.ndarray, "size size"]:
    """The pixels of the image that are painted over for the most part.

    UserError: none is.
    """
    part = np.zeros((size, size), bool)
    for layer in layers or []:
        is_painted = (_fitted(layer, size, size)[..., -1] >= _MASK_ALPHA).astype(float)
        part |= reduce(is_painted, "(h p) (w q) -> h w", "mean", h=size, w=size) >= 0.5
    if not part.any():
        raise UserError("brush over what should change first")
    return part


def _fitted(picture: Picture, rows: int, columns: int) -> Picture:
    """A picture of whatever size as one whose sides are multiples of what it is divided into."""
    scale = max(1, SIDE // max(rows, columns))
    y, x = (
        np.arange(cells * scale) * side // (cells * scale)
        for cells, side in zip((rows, columns), picture.shape[:2], strict=True)
    )
    return picture[y[:, None], x]


def levels_after(
    levels: control.Levels, structure: Int[np.ndarray, "L"], grid: tuple[int, int], stages: int
) -> control.Levels:
    """The map that was made of a map: the level that each cluster of the last stage stands for.

    Clusters in their order stand for levels in theirs, each for as many as agrees best.
    """
    labels = granularity.labels_at(structure[None], stages - 1).reshape(grid)
    clusters = control.enlarged(labels, levels.shape)
    values, levels = np.unique(levels, return_inverse=True)

    def level_of(starts: tuple[int, ...]) -> Int[np.ndarray, "height width"]:
        return np.searchsorted(starts, clusters, side="right")

    ways = itertools.combinations(range(1, 2 ** (stages - 1)), len(values) - 1)
    return values[level_of(max(ways, key=lambda starts: (level_of(starts) == levels).sum()))]
