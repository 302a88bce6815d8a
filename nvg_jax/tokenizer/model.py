"""The tokenizer: images to granularity sequences and back (paper, Sec. 3.1-3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from nvg_jax import clustering, granularity
from nvg_jax.granularity import GranularitySequence
from nvg_jax.tokenizer.autoencoder import Decoder, Encoder, clip_to_image, downsampling
from nvg_jax.tokenizer.quantizer import Quantized, Quantizer


class Reconstruction(NamedTuple):
    """images: decoder output, not clipped. The rest is what lies between them and the input."""

    images: Float[Array, "B H W 3"]
    structure: Int[Array, "B L"]
    quantized: Quantized


class Tokenizer(nn.Module):
    """Autoencoder and quantizer. All methods take or give images in [-1, 1]; compute is float32."""

    image_size: int
    width: int
    multipliers: Sequence[int]
    num_blocks: int
    latent_channels: int
    vocab_size: int
    precision: str = "tensorfloat32"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of latent positions."""
        side = self.image_size // downsampling(self.multipliers)
        return side, side

    @property
    def num_positions(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def last_stage(self) -> int:
        return granularity.last_stage(self.num_positions)

    def example(self) -> Float[Array, "B H W 3"]:
        """Input for `init`."""
        return jnp.zeros((1, self.image_size, self.image_size, 3))

    @property
    def architecture(self) -> str:
        """What a checkpoint has to agree with, in one line."""
        multipliers = ",".join(map(str, self.multipliers))
        return (
            f"tokenizer(image {self.image_size}, width {self.width} x ({multipliers}), "
            f"{self.num_blocks} blocks, {self.num_positions} positions x {self.latent_channels}, "
            f"codebook {self.vocab_size})"
        )

    def setup(self) -> None:
        self.encoder = Encoder(self.width, self.multipliers, self.num_blocks, self.latent_channels)
        self.decoder = Decoder(self.width, self.multipliers, self.num_blocks)
        self.quantizer = Quantizer(self.vocab_size, self.latent_channels, self.grid)

    def __call__(self, images: Float[Array, "B H W 3"], warm_up: bool = False) -> Reconstruction:
        """Encodes, clusters, quantizes and decodes, with gradients; `warm_up` as in Quantizer."""
        latent = self.encode(images)
        structure = clustering.cluster(latent)
        quantized = self.quantizer(latent, structure, warm_up)
        return Reconstruction(self._decode(quantized.latent), structure, quantized)

    def encode(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B L C"]:
        """The continuous latent in raster order."""
        return rearrange(self.encoder(images), "b h w c -> b (h w) c")

    def tokenize(
        self, images: Float[Array, "B H W 3"]
    ) -> tuple[GranularitySequence, Float[Array, "B S L C"]]:
        """The sequence of each image, and its canvases (as in `Quantized`)."""
        latent = self.encode(images)
        structure = clustering.cluster(latent)
        quantized = self.quantizer(latent, structure)
        return GranularitySequence(structure, quantized.tokens), quantized.canvases

    def canvases(self, sequence: GranularitySequence) -> Float[Array, "B S L C"]:
        """The canvases before each stage and after the last one."""
        return self.quantizer.canvases(sequence)

    def brush(
        self, tokens: Int[Array, "B N"], labels: Int[Array, "B L"], stage: int | Int[Array, ""]
    ) -> Float[Array, "B L C"]:
        """What a stage adds to the canvas."""
        return self.quantizer.brush(tokens, labels, stage)

    def decode(self, canvas: Float[Array, "B L C"]) -> Float[Array, "B H W 3"]:
        """The image of a canvas, of any stage, clipped to [-1, 1]."""
        return clip_to_image(self._decode(canvas))

    def decode_sequence(self, sequence: GranularitySequence) -> Float[Array, "B H W 3"]:
        """The image of a finished sequence, clipped to [-1, 1]."""
        return self.decode(self.canvases(sequence)[:, -1])

    def _decode(self, canvas: Float[Array, "B L C"]) -> Float[Array, "B H W 3"]:
        height, width = self.grid
        return self.decoder(rearrange(canvas, "b (h w) c -> b h w c", h=height, w=width))
