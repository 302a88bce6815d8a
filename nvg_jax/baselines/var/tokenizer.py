"""The tokenizer of VAR: a pyramid of grids in place of clusters (VAR, Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num
from ml_collections import ConfigDict

from nvg_jax.errors import UserError
from nvg_jax.tokenizer.model import Tokenizer, build_tokenizer
from nvg_jax.tokenizer.quantizer import Quantizer

PAPERS_SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # On ImageNet at 256 x 256.


class PyramidQuantizer(Quantizer):
    """Quantizes what is left at each scale, shrunk by area and enlarged by cubic interpolation.

    Codebook, refiners, losses and warm-up are those of `Quantizer`. scales: the sides of the grids.
    """

    scales: Sequence[int] = ()

    @property
    def last_stage(self) -> int:
        return len(self.scales) - 1

    def by_stage(self, tokens: Int[Array, "B heap"]) -> list[Int[Array, "B _"]]:
        return by_scale(tokens, self.scales)

    def mean(
        self, values: Float[Array, "B L C"], structure: None, stage: int
    ) -> Float[Array, "B N C"]:
        return shrink(values, self.grid, self.scales[stage])

    def paint(
        self, vectors: Float[Array, "B N C"], structure: None, stage: int
    ) -> Float[Array, "B L C"]:
        side, (batch, _, channels) = self.scales[stage], vectors.shape
        image = vectors.reshape(batch, side, side, channels)
        enlarged = jax.image.resize(image, (batch, *self.grid, channels), "cubic")
        return enlarged.reshape(batch, -1, channels)


class PyramidTokenizer(Tokenizer):
    """The autoencoder of `Tokenizer` with a `PyramidQuantizer`; sequences have no structure."""

    scales: Sequence[int] = ()

    @property
    def last_stage(self) -> int:
        return len(self.scales) - 1

    @property
    def captions(self) -> list[str]:
        return [f"{side} x {side}\ntokens" if side > 1 else "1\ntoken" for side in self.scales]

    @property
    def architecture(self) -> str:
        scales = ",".join(map(str, self.scales))
        return f"VAR's {super().architecture.removesuffix(')')}, scales {scales})"

    @nn.nowrap
    def by_stage(self, tokens: Int[Array, "B heap"]) -> list[Int[Array, "B _"]]:
        return by_scale(tokens, self.scales)

    @nn.nowrap
    def make_quantizer(self) -> PyramidQuantizer:
        sizes = (self.vocab_size, self.latent_channels, self.grid)
        return PyramidQuantizer(*sizes, scales=self.scales)

    def cluster(
        self, images: Float[Array, "B height width 3"]
    ) -> tuple[Float[Array, "B L C"], None]:
        """The continuous latent of each image; there is no structure."""
        return self.encode(images), None

    def brush(self, tokens: Int[Array, "B N"], labels: None, stage: int) -> Float[Array, "B L C"]:
        quantizer = self.quantizer
        painted = quantizer.paint(quantizer.codebook[tokens], None, stage)
        return quantizer.refine(painted, stage)


def by_scale(tokens: Num[Array, "B heap"], scales: Sequence[int]) -> list[Num[Array, "B _"]]:
    """The tokens of each scale, in raster order, or numbers of them."""
    return jnp.split(tokens, np.cumsum(np.square(scales))[:-1], axis=1)


def shrink(
    values: Float[Array, "B L C"], grid: tuple[int, int], side: int
) -> Float[Array, "B N C"]:
    """The mean of a grid's values over the area of each cell of a grid with fewer, in float32."""
    image = values.astype(jnp.float32).reshape(-1, *grid, values.shape[-1])
    rows, columns = (_overlap(length, side) for length in grid)
    highest = jax.lax.Precision.HIGHEST
    cells = jnp.einsum("yh,xw,bhwc->byxc", rows, columns, image, precision=highest)
    return cells.reshape(len(values), side * side, -1)


def _overlap(length: int, side: int) -> Float[np.ndarray, "{side} {length}"]:
    """The share of each of `length` equal parts in each of `side` equal cells of a line."""
    ends = np.arange(side + 1) * length / side
    part = np.arange(length)
    overlap = np.minimum(ends[1:, None], part + 1) - np.maximum(ends[:-1, None], part)
    return np.float32(np.maximum(overlap, 0.0) * side / length)


def build_pyramid_tokenizer(config: ConfigDict) -> PyramidTokenizer:
    """The tokenizer of a whole run's config; UserError if its sizes do not fit together."""
    side = build_tokenizer(config).grid[0]
    scales = tuple(config.tokenizer.model.scales)
    scales = scales or (*(scale for scale in PAPERS_SCALES if scale < side), side)
    if list(scales) != sorted(set(scales)) or scales[0] != 1 or scales[-1] != side:
        raise UserError(
            f"config.tokenizer.model.scales={scales}: name the sides of ever larger grids, from 1 "
            f"to {side}, the side of the latent"
        )
    return build_tokenizer(config, PyramidTokenizer, scales=scales)
