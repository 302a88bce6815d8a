"""How exactly products of float32 numbers are made, by the names that JAX gives in
`jax_default_matmul_precision`."""

from __future__ import annotations

import jax

from nvg_jax.errors import UserError

_PRECISIONS = {
    "bfloat16": jax.lax.Precision.DEFAULT,
    "tensorfloat32": jax.lax.Precision.HIGH,
    "float32": jax.lax.Precision.HIGHEST,
}


def conv_precision(name: str) -> jax.lax.Precision:
    """The precision of convolutions and products; UserError for another name.

    On CPUs all are float32. 'bfloat16' is an accelerator's fastest: bfloat16 on TPUs,
    TensorFloat-32 on GPUs.
    """
    if name not in _PRECISIONS:
        raise UserError(f"unknown precision {name!r}: choose from {', '.join(_PRECISIONS)}")
    return _PRECISIONS[name]
