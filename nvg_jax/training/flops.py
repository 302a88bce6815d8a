"""Floating-point operations of a step, and what the devices could do at most."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

# Dense bfloat16 operations per second of one device, by the name JAX gives it. Sources: Google
# Cloud's TPU pages (system architecture of each version); NVIDIA's data sheets (without sparsity).
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def peak() -> float | None:
    """What all devices together can do in a second; None where that is not published."""
    of_one = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return of_one and of_one * jax.device_count()


def count(function: Callable, *args: Any, **options: Any) -> float:
    """Operations of the matrix products and convolutions of one call, which does not run.

    Counted on the traced program: XLA's own count takes the body of a loop once, so that a stack of
    blocks would count as one block. A scan counts as often as it runs; a `while` loop once, as its
    rounds depend on the data; of a `cond` the most expensive branch counts.
    """
    return _count(jax.make_jaxpr(functools.partial(function, **options))(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> float:
    return float(sum(_count_equation(equation) for equation in jaxpr.eqns))


def _count_equation(equation: core.JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        terms = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2.0 * terms * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel, out_axis = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
        terms = math.prod(kernel) / kernel[out_axis] / math.prod(params["lhs_dilation"])
        return 2.0 * terms * math.prod(equation.outvars[0].aval.shape)
    inner = [_count(jaxpr) for jaxpr in core.jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    return sum(inner, 0.0) * (params["length"] if name == "scan" else 1)
