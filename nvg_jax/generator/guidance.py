"""Classifier-free guidance: a second pass of a network, without the class (paper, Sec. 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def with_no_class(class_id: Int[Array, "B"], no_class: int, passes: int) -> Int[Array, "_"]:
    """Class ids for one pass, or for two in one batch, of which the second has `no_class`."""
    return jnp.concatenate([class_id, jnp.full_like(class_id, no_class)][:passes])


def guide(
    of_passes: Sequence[Float[Array, "*shape"]],
    guidance: Float[Array | np.ndarray, ""] | float | None,
) -> Float[Array, "*shape"]:
    """What the first pass says, moved away from what the second says; one pass is left as it is."""
    found, *others = of_passes
    for without in others:
        found = without + guidance * (found - without)
    return found
