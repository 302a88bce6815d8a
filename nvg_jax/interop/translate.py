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
from nvg_jax.interop.torch_file import StoredTensor

# What is in a file is read when it is needed.
Tensors = Mapping[str, np.ndarray | StoredTensor]


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


def released_names(
    path: str, shape: tuple[int, ...], release: Release
) -> tuple[list[str], tuple[int, ...]]:
    """The names of the tensors that a parameter is made of, and the shape of each."""
    name = path
    for pattern, replacement in release.names:
        name = re.sub(pattern, replacement, name)
    names = [name.replace("/", ".")]
    if "{}" in name:
        names, shape = [names[0].format(index) for index in range(shape[0])], shape[1:]
    if path.endswith("kernel"):
        shape = (shape[-1], shape[-2], *shape[:-2])
    return names, (1, *shape) if release.leading_axis.search(path) else shape


def translate(
    tensors: Tensors, shapes: Mapping[str, tuple[int, ...]], release: Release
) -> dict[str, Any]:
    """The `params` of the shapes that `parameter_shapes` gives, in float32.

    UserError names every tensor that is missing, not expected or of another shape.
    """
    unexpected = {name for name in tensors if not release.ignored.search(name)}
    params, problems = {}, []
    for path, shape in shapes.items():
        names, expected = released_names(path, shape, release)
        unexpected.difference_update(names)
        layers = []
        for name in names:
            tensor = tensors.get(name)
            if tensor is None:
                problems.append(f"{name} is missing")
            elif tensor.shape != expected:
                problems.append(f"{name} is {list(tensor.shape)}, not {list(expected)}")
            elif not problems:
                array = np.asarray(tensor, np.float32)
                kernel = path.endswith("kernel")
                layers.append(array.transpose(*range(2, array.ndim), 1, 0) if kernel else array)
        if not problems:
            params[path] = np.stack(layers).reshape(shape)
    problems += [f"{name} is not expected" for name in sorted(unexpected)]
    if problems:
        raise UserError(f"{release.misfit}: {'; '.join(problems)}. {release.advice}")
    return traverse_util.unflatten_dict(params, sep="/")
