"""The trainable heads that judge images by a frozen network's features (paper, Appendix A)."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float


class Discriminator(nn.Module):
    """One head for each readout of the features; real images get high logits, others low ones.

    The collection `batch_stats` holds the vectors of the spectral norms' power iteration, which
    goes on by one round in each call with `batch_stats` mutable.
    """

    @nn.compact
    def __call__(self, readouts: Float[Array, "B R N D"]) -> Float[Array, "B M"]:
        """The logits of all R readouts at all N positions, M = R * N.

        Batch norm takes its statistics over the images of the call, wherever they lie: under jit
        that is a mean over all devices.
        """
        heads = nn.vmap(
            _Head,
            in_axes=1,
            out_axes=1,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
        )
        logits = heads(name="heads")(readouts)
        return rearrange(logits, "b r n -> b (r n)")


class _Head(nn.Module):
    """Three spectrally normalised convolutions along the positions, the second one residual."""

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N"]:
        x = self._block(x, kernel_size=1)
        x = (x + self._block(x, kernel_size=9)) / jnp.sqrt(2.0)
        return _spectral_conv(x, features=1, kernel_size=1)[..., 0]

    def _block(self, x: Float[Array, "B N D"], kernel_size: int) -> Float[Array, "B N D"]:
        x = _spectral_conv(x, x.shape[-1], kernel_size)
        # Batch norm by the statistics of this batch alone: it is never run with averages.
        batch_norm = nn.LayerNorm(epsilon=1e-5, reduction_axes=(0, 1), feature_axes=-1)
        return nn.leaky_relu(batch_norm(x), 0.2)


def _spectral_conv(x: Float[Array, "B N D"], features: int, kernel_size: int) -> Array:
    conv = functools.partial(nn.Conv, features, (kernel_size,), padding="CIRCULAR")
    norm = nn.SpectralNorm(conv())
    return norm(x, update_stats=norm.is_mutable_collection("batch_stats"))
