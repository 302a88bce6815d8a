"""Image files of users: whatever Pillow opens, as the colours or the grey levels that are meant."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from etils import epath
from jaxtyping import Int
from PIL import Image, ImageOps

from nvg_jax.errors import UserError
from nvg_jax.saving_errors import reason

log = logging.getLogger(__name__)
# Pillow logs some of what it raises as well.
logging.getLogger("PIL").setLevel(logging.CRITICAL)

Decoded = TypeVar("Decoded")

_ADVICE = "save it with 8 or 16 bits"


def read_rgb(path: epath.PathLike) -> Image.Image:
    """The image in a file as RGB, upright, on white where it is transparent.

    UserError: it cannot be read, or its grey values have no known white.
    """
    return _read(path, _on_white)


def read_levels(path: epath.PathLike) -> Int[np.ndarray, "height width"]:
    """The grey values of an image file, of which only the order matters, in all their bits.

    Colours count as their grey, and what is transparent lies below all others. UserError: it cannot
    be read, or has pixels that are no number.
    """
    return _read(path, _grey_levels)


def _read(path: epath.PathLike, decode: Callable[[Image.Image], Decoded]) -> Decoded:
    """What `decode` makes of the image in a file, upright and the first if there are several."""
    try:
        with warnings.catch_warnings(), epath.Path(path).open("rb") as file:
            warnings.simplefilter("ignore")  # Pillow's, about what it can read all the same.
            with Image.open(file) as image:
                count = getattr(image, "n_frames", 1)
                decoded = decode(ImageOps.exif_transpose(image))
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"cannot read {path}: it is no image, or damaged") from None
    except Image.DecompressionBombError:
        most = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise UserError(f"{path} is too large: make it {most} million pixels or fewer") from None
    except Exception as error:  # Of a damaged file, Pillow's decoders raise anything.
        why = "" if getattr(error, "strerror", None) else "it is damaged or of an unknown kind, "
        raise UserError(f"cannot read {path}: {why}{reason(error)}") from None
    if count > 1:
        log.info("%s holds %d pictures, of which the first is taken", path, count)
    return decoded


def _grey_levels(image: Image.Image) -> Int[np.ndarray, "height width"]:
    if image.mode == "F":
        values = np.asarray(image)
        if np.isnan(values).any():
            raise UserError(f"has pixels that are no number: {_ADVICE}")
        return np.unique(values, return_inverse=True)[1]
    if image.mode.startswith("I"):  # Pillow would clip its 16 or 32 bits.
        return np.asarray(image).astype(int)
    levels = np.asarray(image.convert("L")).astype(int)
    if image.has_transparency_data:
        levels[np.asarray(image.convert("RGBA").getchannel("A")) < 128] = -1
    return levels


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() >= 2**16:
            raise UserError(f"has grey values of no known white: {_ADVICE}")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
