"""Floating-point operations of a step."""

from __future__ import annotations

import math

from jax.extend import core


def count(program: core.ClosedJaxpr) -> float:
    """Operations of the matrix products and convolutions of a traced program, which does not run.

    Counted on the traced program: XLA's own count takes the body of a loop once, so that a stack of
    blocks would count as one block. A scan or a kernel counts as often as it runs; a `while` loop
    once, as its rounds depend on the data; of a `cond` the most expensive branch counts.
    """
    return _count(program.jaxpr)


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
    if name == "shard_map":  # Its shapes are those of one device.
        return sum(inner) * params["mesh"].size
    if name == "pallas_call":
        return sum(inner) * math.prod(params["grid_mapping"].grid)
    return sum(inner, 0.0) * (params["length"] if name == "scan" else 1)
