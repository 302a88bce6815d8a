"""The tokenizer: images to granularity sequences and back (paper, Sec. 3.1-3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from nvg_jax import allowed, clustering, granularity, sharding
from nvg_jax.errors import UserError
from nvg_jax.granularity import GranularitySequence
from nvg_jax.tokenizer.autoencoder import (
    Arithmetic,
    Decoder,
    Encoder,
    clip_to_image,
    downsampling,
)
from nvg_jax.tokenizer.quantizer import Quantized, Quantizer


class Reconstruction(NamedTuple):
    """images: decoder output, not clipped. The rest is what lies between them and the input."""

    images: Float[Array, "B height width 3"]
    structure: Int[Array, "B L"]
    quantized: Quantized


class Tokenizer(nn.Module):
    """Autoencoder and quantizer. All methods take or give float32 images in [-1, 1].

    norm_groups: of channels that are normalised together. With a channel in each, an image's
    brightness has to be smuggled past the normalisation, as a bright blob at a fixed place.
    clustering: where structure comes from, a name in `clustering.CLUSTERINGS`.
    ladder: the stages that are painted, as `granularity.painted_stages` takes them; empty is all.
    arithmetic: of the autoencoder. Quantization is in exact float32 on every device.
    """

    image_size: int
    width: int
    multipliers: Sequence[int]
    num_blocks: int
    latent_channels: int
    vocab_size: int
    norm_groups: int = 32
    clustering: str = "greedy"
    arithmetic: Arithmetic = Arithmetic()
    ladder: tuple[int, ...] = ()

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

    @property
    def stages(self) -> tuple[int, ...]:
        """Those that are painted."""
        return granularity.painted_stages(self.ladder, self.last_stage)

    @property
    def captions(self) -> list[str]:
        """Of each painted stage, in pictures."""
        return [f"stage {k}\n{2**k} token{'s' if k else ''}" for k in self.stages]

    @nn.nowrap
    def by_stage(self, tokens: Int[Array, "B heap"]) -> list[Int[Array, "B _"]]:
        """The tokens of each painted stage."""
        return granularity.by_stage(tokens, self.stages)

    @property
    def architecture(self) -> str:
        """What a checkpoint has to agree with, in one line."""
        multipliers = ",".join(map(str, self.multipliers))
        clustering = "" if self.clustering == "greedy" else f", {self.clustering} clustering"
        stages = granularity.ladder_in_words(self.stages)
        return (
            f"tokenizer(image {self.image_size}, width {self.width} x ({multipliers}), "
            f"{self.num_blocks} blocks, {self.norm_groups} groups, {self.num_positions} positions "
            f"x {self.latent_channels}, codebook {self.vocab_size}{clustering}{stages})"
        )

    @nn.nowrap
    def init_variables(self, key: Key[Array, ""]) -> Any:
        """Random variables to train from: `params` and `stats`."""
        return self.init(key, jnp.zeros((1, self.image_size, self.image_size, 3)))

    def setup(self) -> None:
        sizes = (self.width, self.multipliers, self.num_blocks, self.norm_groups)
        self.encoder = Encoder(*sizes, self.latent_channels, self.arithmetic)
        self.decoder = Decoder(*sizes, self.arithmetic)
        self.quantizer = self.make_quantizer()

    @nn.nowrap
    def make_quantizer(self) -> Quantizer:
        return Quantizer(self.vocab_size, self.latent_channels, self.grid, self.ladder)

    def __call__(
        self,
        images: Float[Array, "B height width 3"],
        codebook_warmup: Bool[Array, ""] | None = None,
    ) -> Reconstruction:
        """Encodes, clusters, quantizes (as `Quantizer`) and decodes, with gradients."""
        latent, structure = self.cluster(images)
        quantized = self.quantizer(latent, structure, codebook_warmup)
        return Reconstruction(self._decode(quantized.latent), structure, quantized)

    def encode(self, images: Float[Array, "B height width 3"]) -> Float[Array, "B L C"]:
        """The continuous latent in raster order."""
        return rearrange(self.encoder(images), "b h w c -> b (h w) c")

    def tokenize(
        self, images: Float[Array, "B height width 3"]
    ) -> tuple[GranularitySequence, Float[Array, "B canvases L C"]]:
        """The sequence of each image, and its canvases (as in `Quantized`)."""
        latent, structure = self.cluster(images)
        quantized = self.quantizer(latent, structure)
        return GranularitySequence(structure, quantized.tokens), quantized.canvases

    def cluster(
        self, images: Float[Array, "B height width 3"]
    ) -> tuple[Float[Array, "B L C"], Int[Array, "B L"]]:
        """The continuous latent of each image, and the structure that follows from it."""
        latent = self.encode(images)
        cluster = clustering.CLUSTERINGS[self.clustering]
        return latent, sharding.by_device(cluster, latent)

    def canvases(self, sequence: GranularitySequence) -> Float[Array, "B canvases L C"]:
        """The canvases before each painted stage and after the last one."""
        return self.quantizer.canvases(sequence)

    def brush(
        self, tokens: Int[Array, "B N"], labels: Int[Array, "B L"], stage: int | Int[Array, ""]
    ) -> Float[Array, "B L C"]:
        """What a stage adds to the canvas."""
        return self.quantizer.brush(tokens, labels, stage)

    def nearest(self, vectors: Float[Array, "B N C"]) -> Int[Array, "B N"]:
        """The token whose code is nearest to each vector."""
        return self.quantizer.nearest(vectors)

    def decode(self, canvas: Float[Array, "B L C"]) -> Float[Array, "B height width 3"]:
        """The image of a canvas, of any stage, clipped to [-1, 1]."""
        return clip_to_image(self._decode(canvas))

    def _decode(self, canvas: Float[Array, "B L C"]) -> Float[Array, "B height width 3"]:
        height, width = self.grid
        return self.decoder(rearrange(canvas, "b (h w) c -> b h w c", h=height, w=width))


def canvas_scales(variables: Any) -> Float[Array | np.ndarray, "scales"]:
    """1 / std of the canvas before each stage and after the last, as a tokenizer's variables hold
    them."""
    return variables["stats"]["quantizer"]["canvas_scales"]


def build_tokenizer(
    config: ConfigDict, kind: type[Tokenizer] = Tokenizer, **options: Any
) -> Tokenizer:
    """The tokenizer of a whole run's config; UserError if its sizes do not fit together.

    kind: the class, which takes these options besides.
    """
    model = config.tokenizer.model
    allowed.check(model, "config.tokenizer.model")
    factor = downsampling(model.multipliers)
    if config.data.image_size % factor:
        raise UserError(
            f"config.data.image_size={config.data.image_size} is not a multiple of {factor}, the "
            "downsampling of config.tokenizer.model.multipliers"
        )
    if model.width % model.norm_groups:
        raise UserError(
            f"config.tokenizer.model.width={model.width} is not a multiple of norm_groups="
            f"{model.norm_groups}, the groups of channels that are normalised together"
        )
    tokenizer = kind(
        image_size=config.data.image_size,
        width=model.width,
        multipliers=tuple(model.multipliers),
        num_blocks=model.num_blocks,
        latent_channels=model.latent_channels,
        vocab_size=model.vocab_size,
        norm_groups=model.norm_groups,
        clustering=model.clustering,
        arithmetic=Arithmetic(model.precision, model.dtype, model.remat),
        ladder=tuple(config.stages),
        **options,
    )
    _ = tokenizer.stages  # Raises if the positions are not a power of two, or these do not fit.
    return tokenizer
