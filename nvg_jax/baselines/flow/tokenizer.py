"""The tokenizer of the flow: an autoencoder alone."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from nvg_jax.granularity import GranularitySequence
from nvg_jax.tokenizer.model import Tokenizer, build_tokenizer
from nvg_jax.tokenizer.quantizer import Quantized


class Identity(nn.Module):
    """Stands where others quantize. `canvas_scales [2]`: one, and 1 / std of the latent."""

    def setup(self) -> None:
        self.canvas_scales = self.variable("stats", "canvas_scales", jnp.ones, (2,))

    def __call__(
        self,
        latent: Float[Array, "B L C"],
        structure: None,
        codebook_warmup: Bool[Array, ""] | None = None,
    ) -> Quantized:
        return Quantized(latent, latent, _canvases(latent), jnp.zeros(()))

    def canvases(self, sequence: GranularitySequence) -> Float[Array, "B 2 L C"]:
        return _canvases(sequence.tokens)


def _canvases(latent: Float[Array, "B L C"]) -> Float[Array, "B 2 L C"]:
    return jnp.stack([jnp.zeros_like(latent), latent], axis=1)


class Autoencoder(Tokenizer):
    """The autoencoder of `Tokenizer`; its sequences hold the latent in place of tokens."""

    @property
    def last_stage(self) -> int:
        return 0

    @property
    def captions(self) -> list[str]:
        return ["latent"]

    @property
    def architecture(self) -> str:
        return super().architecture.partition(", codebook")[0].replace("token", "autoencod") + ")"

    @nn.nowrap
    def make_quantizer(self) -> Identity:
        return Identity()

    @nn.nowrap
    def by_stage(self, tokens: Float[Array, "B L C"]) -> list[Array]:
        """None: a latent has no tokens."""
        return []

    def cluster(
        self, images: Float[Array, "B height width 3"]
    ) -> tuple[Float[Array, "B L C"], None]:
        """The continuous latent of each image; there is no structure."""
        return self.encode(images), None


def build_autoencoder(config: ConfigDict) -> Autoencoder:
    """The autoencoder of a whole run's config; UserError if its sizes do not fit together."""
    return build_tokenizer(config, Autoencoder)
