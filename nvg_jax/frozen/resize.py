"""The ways of resizing images with which the frozen networks were trained and are used.

They are PyTorch's unless the name says otherwise. All are separable linear maps: one matrix for
the rows, one for the columns. The rows of a matrix sum to one, so that constant images stay
constant.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Images = Float[Array, "_ _ _ _"]  # Batch, height, width, channels.


def area(images: Images, size: tuple[int, int]) -> Images:
    """Adaptive averaging (`mode='area'`) to `size`: each pixel is the mean of those it touches."""
    rows, columns = map(_area_matrix, images.shape[1:3], size)
    return _apply(images, rows, columns)


def bicubic(images: Images, size: tuple[int, int]) -> Images:
    """Bicubic interpolation (a = -0.75) between pixel centres to `size`, without antialiasing.

    Pixels outside are those of the border. The result can leave the range of the images.
    """
    rows, columns = map(_bicubic_matrix, images.shape[1:3], size)
    return _apply(images, rows, columns)


def bilinear_tf1(images: Images, size: tuple[int, int]) -> Images:
    """Bilinear interpolation of TensorFlow 1 to `size`, which measures from the upper left corner.

    Pixel i is read at i * old size / new size, between floor and floor + 1; pixels outside are
    those of the border. Images of that size stay as they are.
    """
    rows, columns = map(_bilinear_tf1_matrix, images.shape[1:3], size)
    return _apply(images, rows, columns)


def _apply(images: Images, rows: np.ndarray, columns: np.ndarray) -> Images:
    return jnp.einsum(
        "bhwc,yh,xw->byxc", images, rows, columns, precision=jax.lax.Precision.HIGHEST
    )


def _area_matrix(size: int, new_size: int) -> Float[np.ndarray, "new_size size"]:
    index = np.arange(new_size)[:, None]
    first = index * size // new_size
    end = -(-(index + 1) * size // new_size)
    inside = (np.arange(size) >= first) & (np.arange(size) < end)
    return (inside / (end - first)).astype(np.float32)


def _bicubic_matrix(size: int, new_size: int) -> Float[np.ndarray, "new_size size"]:
    center = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    nearest = np.floor(center).astype(int)
    matrix = np.zeros((new_size, size))
    for offset in (-1, 0, 1, 2):
        pixel = nearest + offset
        weight = _cubic_kernel(np.abs(center - pixel), a=-0.75)
        np.add.at(matrix, (np.arange(new_size), pixel.clip(0, size - 1)), weight)
    return matrix.astype(np.float32)


def _bilinear_tf1_matrix(size: int, new_size: int) -> Float[np.ndarray, "new_size size"]:
    index = np.arange(new_size)
    before, beyond = np.divmod(index * size, new_size)
    weight = beyond / new_size
    matrix = np.zeros((new_size, size))
    np.add.at(matrix, (index, before), 1 - weight)
    np.add.at(matrix, (index, np.minimum(before + 1, size - 1)), weight)
    return matrix.astype(np.float32)


def _cubic_kernel(distance: np.ndarray, a: float) -> np.ndarray:
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, far)
