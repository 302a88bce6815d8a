"""What a visitor of the page sends, brought within bounds: numbers, classes and files."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
from jaxtyping import UInt8

from nvg_jax.errors import UserError
from nvg_jax.jobs.given import square_image

MAX_BYTES = 10 * 2**20  # Of an upload.
MAX_PIXELS = 25_000_000  # Of an image, by its header, before anything is decoded.
MAX_SEED = 2**32 - 1
MAX_TEMPERATURE = 2.0
MAX_STRENGTH = 2.0  # Of the guidance, 1 being that of the config.
STEPS = (1, 2, 4, 8, 16, 25)  # Each is a program of its own, so that there are few.

IN_TURN, NO_CLASS = "all in turn", "none"


def number(value: Any, least: int | float, most: int | float, name: str) -> float:
    """The nearest number that is allowed. UserError: it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{name} has to be a number from {least:g} to {most:g}")
    return float(min(max(value, least), most))


def whole(value: Any, least: int, most: int, name: str) -> int:
    """As `number`, rounded."""
    return round(number(value, least, most, name))


def nearest_steps(value: Any) -> int:
    """The one of STEPS that is nearest to a number."""
    wanted = number(value, STEPS[0], STEPS[-1], "the number of steps")
    return min(STEPS, key=lambda steps: abs(steps - wanted))


def classes(choice: Any, count: int, num_classes: int) -> list[int | None]:
    """So many class ids: IN_TURN, None for NO_CLASS, or a class by its number."""
    if choice == IN_TURN:
        return [index % num_classes for index in range(count)]
    if choice == NO_CLASS:
        return [None] * count
    if choice not in map(str, range(num_classes)):
        raise UserError(f"there is no such class: choose 0 to {num_classes - 1}")
    return [int(choice)] * count


def upload(path: str | None, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The largest square in the middle of an uploaded image.

    UserError: there is none, it is too large, or no image. (Of the pixels `square_image` says so:
    the page has Pillow refuse more than MAX_PIXELS.)
    """
    if not path:
        raise UserError("choose an image first")
    name = os.path.basename(path)
    if os.path.getsize(path) > MAX_BYTES:
        raise UserError(f"{name} is too large: make it {MAX_BYTES >> 20} MB or fewer")
    try:
        return square_image(path, size)
    except UserError as error:
        raise UserError(str(error).replace(path, name)) from None
