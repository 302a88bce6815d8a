"""Splash attention, a fused TPU kernel whose scores never leave the chip."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Float

from nvg_jax import sharding

_LANES = 128  # Blocks are multiples of a TPU's vector registers,
_LARGEST_BLOCK = 1024  # and their scores have to fit into its fast memory.

Heads = Float[Array, "B T H E"]


def attention(q: Heads, k: Heads, v: Heads) -> Heads:
    """Attention with the softmax in float32, compiled for TPUs and interpreted on the CPU.

    Every device attends to its own part of the batch. Where the tokens do not fill blocks, keys of
    padding are in a segment of their own.
    """
    tokens = q.shape[1]
    blocks = -(-tokens // _LARGEST_BLOCK)
    block = -(-tokens // blocks // _LANES) * _LANES
    padding = ((0, 0), (0, 0), (0, blocks * block - tokens), (0, 0))
    q, k, v = (rearrange(x, "b t h e -> b h t e") for x in (q * q.shape[-1] ** -0.5, k, v))
    q, k, v = (jnp.pad(x, padding) for x in (q, k, v))
    segments = (np.arange(blocks * block) >= tokens).astype(np.int32)
    ids = splash.SegmentIds(segments, segments)

    def attend(q: Array, k: Array, v: Array, interpret: bool) -> Array:
        mask = splash.MultiHeadMask([splash.FullMask((len(segments),) * 2)] * q.shape[1])
        sizes = splash.BlockSizes(*[block] * 6, use_fused_bwd_kernel=True)
        kernel = splash.make_splash_mha_single_device(
            mask, block_sizes=sizes, residual_checkpoint_name="attention", interpret=interpret
        )
        return jax.vmap(kernel, (0, 0, 0, None))(q, k, v, ids)

    def of_a_device(q: Array, k: Array, v: Array) -> Array:
        return jax.lax.platform_dependent(
            q,
            k,
            v,
            tpu=functools.partial(attend, interpret=False),
            default=functools.partial(attend, interpret=True),
        )

    return rearrange(sharding.by_device(of_a_device, q, k, v)[:, :, :tokens], "b h t e -> b t h e")
