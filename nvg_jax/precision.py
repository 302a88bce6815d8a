"""How exactly accelerators multiply float32, under the names of JAX's own setting."""

from __future__ import annotations

import jax

from nvg_jax.errors import UserError

PRECISIONS = {
    "bfloat16": jax.lax.Precision.DEFAULT,
    "tensorfloat32": jax.lax.Precision.HIGH,
    "float32": jax.lax.Precision.HIGHEST,
}


def conv_precision(name: str) -> jax.lax.Precision:
    """The precision of convolutions and matrix products of float32 arrays.

    name: 'bfloat16', the fastest of an accelerator; 'tensorfloat32', as PyTorch trains on GPUs;
    'float32', exact. CPUs always compute exactly. UserError for another name.
    """
    if name not in PRECISIONS:
        raise UserError(f"unknown precision {name!r}: choose from {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
