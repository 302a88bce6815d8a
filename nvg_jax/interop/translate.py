"""From a PyTorch `state_dict` to the parameters of one of our modules: names and layouts.

A `state_dict` is a flat dict of tensors: convolutions [out, in, height, width], linear layers
[out, in], one entry per transformer block.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Key

from nvg_jax import sharding
from nvg_jax.errors import UserError

Tensors = Mapping[str, np.ndarray]


class Release(NamedTuple):
    """How released weights are named.

    names: patterns and replacements that, one after the other, turn the path of one of our
      parameters (`encoder/conv_in/kernel`) into the release's name of it. What is left of `/`
      becomes `.`; `{}` stands for the index along our leading axis, over which the release keeps
      separate tensors.
    ignored: found in the names of tensors that are no part of our module.
    misfit, advice: what an error says before and after the tensors that do not fit.
    leading_axis: found in the paths of parameters that the release keeps with an axis of 1 in
      front.
    """

    names: tuple[tuple[str, str], ...]
    ignored: re.Pattern
    misfit: str
    advice: str
    leading_axis: re.Pattern = re.compile(r"(?!)")


def parameter_shapes(init: Callable[[Key[Array, ""]], Any]) -> dict[str, tuple[int, ...]]:
    """Shape by path (`encoder/conv_in/kernel`) of every parameter that `init` makes of a key."""
    variables = sharding.unnamed(jax.eval_shape(init, jax.random.key(0)))
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def translate(
    tensors: Tensors, shapes: Mapping[str, tuple[int, ...]], release: Release
) -> dict[str, Any]:
    """The `params` of the shapes that `parameter_shapes` gives, in float32.

    UserError names every tensor that is missing, not expected or of another shape.
    """
    unexpected = {name for name in tensors if not release.ignored.search(name)}
    params, problems = {}, []
    for path, shape in shapes.items():
        name = path
        for pattern, replacement in release.names:
            name = re.sub(pattern, replacement, name)
        name = name.replace("/", ".")
        names, expected = [name], shape
        if "{}" in name:
            names, expected = [name.format(index) for index in range(shape[0])], shape[1:]
        is_kernel = path.endswith("kernel")
        if is_kernel:
            expected = (expected[-1], expected[-2], *expected[:-2])
        if release.leading_axis.search(path):
            expected = (1, *expected)
        layers = []
        for name in names:
            unexpected.discard(name)
            tensor = tensors.get(name)
            if tensor is None:
                problems.append(f"{name} is missing")
            elif tensor.shape != expected:
                problems.append(f"{name} is {list(tensor.shape)}, not {list(expected)}")
            else:
                channels_last = (*range(2, tensor.ndim), 1, 0)
                layers.append(tensor.transpose(channels_last) if is_kernel else tensor)
        if not problems:
            params[path] = np.stack(layers).reshape(shape).astype(np.float32)
    problems += [f"{name} is not expected" for name in sorted(unexpected)]
    if problems:
        raise UserError(f"{release.misfit}: {'; '.join(problems)}. {release.advice}")
    return traverse_util.unflatten_dict(params, sep="/")
