"""What an edit makes anew: pixels, positions of the latent, and how the rest is joined to them."""

from __future__ import annotations

import numpy as np
from einops import reduce
from jaxtyping import Bool, Float, UInt8
from ml_collections import ConfigDict

from nvg_jax import control
from nvg_jax.errors import UserError


def edited_part(
    config: ConfigDict, grid: tuple[int, int]
) -> tuple[Bool[np.ndarray, "height width"], Bool[np.ndarray, "L"]]:
    """The pixels that `config.edit` says to make anew, and the latent's positions that hold any.

    The inside of a shape, or what is bright in an image file; with `config.edit.invert` the rest.
    UserError: what `control.draw_shape` and `read_map` raise; nothing is left to make or to keep.
    """
    text, size = config.edit.mask, config.data.image_size
    levels = control.named_map(text, size, grid)
    if levels.min() == levels.max():
        raise UserError(
            f"{text} has one level only: paint white what is made anew and black what is kept"
        )
    part = (levels > (levels.min() + levels.max()) / 2) != config.edit.invert
    part = control.enlarged(part, (size, size))
    return part, free_positions(part, grid, text)


def free_positions(
    part: Bool[np.ndarray, "height width"], grid: tuple[int, int], name: str
) -> Bool[np.ndarray, "L"]:
    """The latent's positions that hold any pixel of a part; UserError if that are all."""
    free = reduce(part, "(h p) (w q) -> (h w)", "max", h=grid[0], w=grid[1])
    if free.all():
        raise UserError(
            f"{name} leaves nothing to keep: each of the {grid[1]} x {grid[0]} positions of the "
            "latent holds a part of what is made anew"
        )
    return free


def share_of_new(
    part: Bool[np.ndarray, "height width"], grid: tuple[int, int]
) -> Float[np.ndarray, "height width 1"]:
    """How much of each pixel is new: all in the part, less around it, and nothing from the width of
    a position on."""
    from scipy.ndimage import distance_transform_edt  # It takes half a second.

    distance = distance_transform_edt(~part)[..., None]
    return np.clip(1 - distance * grid[0] / len(part), 0, 1)


def blended(
    made: UInt8[np.ndarray, "*batch height width 3"],
    original: UInt8[np.ndarray, "*#batch height width 3"],
    share: Float[np.ndarray, "height width 1"],
) -> UInt8[np.ndarray, "*batch height width 3"]:
    """Variants with the image's own pixels where these are not new."""
    return np.round(share * made + (1 - share) * original).astype(np.uint8)
