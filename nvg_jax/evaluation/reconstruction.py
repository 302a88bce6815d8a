"""How often codes are used."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nvg_jax import granularity


def token_counts(
    tokens: Int[Array, "B heap"], vocab_size: int, mask: Bool[Array, "B"] | None = None
) -> Int[Array, "stages V"]:
    """How often each stage uses each code, with all images of the batch counted together.

    tokens: heaps of codes in [0, V). Images with a false `mask` do not count.
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
    counts: Int[Array | np.ndarray, "stages V"],
) -> tuple[Float[np.ndarray, "stages"], float]:
    """Share of the codes used at least once: by each stage, and by all stages together."""
    used = np.asarray(counts) > 0
    return used.mean(axis=1), float(used.any(axis=0).mean())
