"""How well images survive the tokenizer, and how much of the codebook they use."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nvg_jax import granularity

PEAK = 2.0  # Images span [-1, 1].


def psnr(
    images: Float[Array, "B H W C"], reconstructions: Float[Array, "B H W C"]
) -> Float[Array, "B"]:
    """Peak signal-to-noise ratio of each image in [-1, 1], in dB; infinite for identical ones."""
    error = images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
    return 10.0 * jnp.log10(PEAK**2 / jnp.mean(error**2, axis=(1, 2, 3)))


def token_counts(
    tokens: Int[Array, "B M"], vocab_size: int, mask: Bool[Array, "B"] | None = None
) -> Int[Array, "S V"]:
    """How often each stage uses each code, with all images of the batch counted together.

    tokens: heaps of M = 2L - 1 codes in [0, V). Images with a false `mask` do not count.
    """
    last_stage = granularity.last_stage((tokens.shape[-1] + 1) // 2)
    weight = jnp.ones(tokens.shape[:1], jnp.int32) if mask is None else mask.astype(jnp.int32)
    counts = []
    for stage in range(last_stage + 1):
        codes = granularity.stage_tokens(tokens, stage)
        zeros = jnp.zeros((vocab_size,), jnp.int32)
        counts.append(zeros.at[codes].add(jnp.broadcast_to(weight[:, None], codes.shape)))
    return jnp.stack(counts)


def codebook_usage_by_stage(
    counts: Int[Array | np.ndarray, "S V"],
) -> tuple[Float[np.ndarray, "S"], float]:
    """Share of the codes used at least once: by each stage, and by all stages together."""
    used = np.asarray(counts) > 0
    return used.mean(axis=1), float(used.any(axis=0).mean())
