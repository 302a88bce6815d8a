"""Stands in for the published files of the frozen networks: their names and shapes, made-up values.

The values follow the rule with which the reference arrays were computed. They depend on the names,
so that a network whose tensors were named otherwise would not equal the reference.
"""

import math
import zlib

import numpy as np

from nvg_jax.frozen.weights import Network
from nvg_jax.interop.frozen_names import release_of
from nvg_jax.interop.translate import parameter_shapes, released_names

StateDict = dict[str, np.ndarray]

# What the files hold beside what we look through, without most of VGG16's classifier.
_OTHERS = {
    "lpips": {"classifier.6.bias": (1000,)},
    "dino": {},
    "dinov2": {"mask_token": (1, 768)},
    "inception": {"fc.bias": (1008,), "Conv2d_1a_3x3.bn.num_batches_tracked": ()},
}


def published(network: Network) -> dict[str, StateDict]:
    """The tensors of each file that a network is made of."""
    shapes = dict(_OTHERS[network.name])
    for path, shape in parameter_shapes(network.init).items():
        names, shape = released_names(path, shape, release_of(network))
        shapes |= dict.fromkeys(names, shape)
    tensors = {name: np.asarray(_value(name, shape)) for name, shape in shapes.items()}
    if network.name == "dino":  # The reference has no bias of the keys.
        for name in tensors:
            if name.endswith("qkv.bias"):
                _, keys, _ = np.split(tensors[name], 3)
                keys[:] = 0
    first, *second = network.files
    if not second:
        return {first: tensors}
    heads = {name: tensors.pop(name) for name in list(tensors) if name.startswith("lin")}
    return {first: tensors, second[0]: heads}


def state_dict(network: Network) -> StateDict:
    """The tensors of all files."""
    return {name: value for file in published(network).values() for name, value in file.items()}


def _value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    r = np.asarray(rng.standard_normal(shape), np.float32)
    if name.startswith("lin"):
        return np.abs(r) / np.float32(shape[1])
    if name.endswith(("_token", "pos_embed", "bias", "running_mean")):
        return np.float32(0.1) * r
    if name.endswith("running_var"):
        return np.float32(0.5) * (1 + np.abs(r))
    if name.endswith("gamma") or len(shape) == 1:
        return 1 + np.float32(0.1) * r
    return r * np.float32(math.sqrt(2 / math.prod(shape[1:])))
