"""Stands in for the published files of the frozen networks: their names and shapes, made-up values.

The values follow the rule with which the reference arrays were computed; they depend on the names.
"""

import math
import pathlib
import zlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

StateDict = dict[str, np.ndarray]

_GOLDEN = pathlib.Path(__file__).parent / "golden" / "frozen_networks.npz"
_VGG16_CHANNELS = {
    0: (3, 64), 2: (64, 64),
    5: (64, 128), 7: (128, 128),
    10: (128, 256), 12: (256, 256), 14: (256, 256),
    17: (256, 512), 19: (512, 512), 21: (512, 512),
    24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip


def reference(name: str) -> np.ndarray:
    with np.load(_GOLDEN, allow_pickle=False) as arrays:
        return arrays[name]


def reference_image(name: str) -> Float[Array, "B H W 3"]:
    """In [-1, 1]."""
    return jnp.asarray(reference(name).transpose(0, 2, 3, 1) / 127.5 - 1, jnp.float32)


def vgg16() -> StateDict:
    """Without most of the classifier, 120 million numbers that nobody needs."""
    shapes = {"classifier.6.bias": (1000,)}
    for place, (inputs, outputs) in _VGG16_CHANNELS.items():
        shapes[f"features.{place}.weight"] = (outputs, inputs, 3, 3)
        shapes[f"features.{place}.bias"] = (outputs,)
    return _values(shapes)


def lpips_heads() -> StateDict:
    channels = (64, 128, 256, 512, 512)
    return _values({f"lin{k}.model.1.weight": (1, c, 1, 1) for k, c in enumerate(channels)})


def dino_vits16() -> StateDict:
    """With the bias of the keys at zero, as in the reference."""
    state_dict = _values(vit_shapes(width=384, patch_size=16, native_grid=14))
    for name, value in state_dict.items():
        if name.endswith("qkv.bias"):
            value[384:768] = 0
    return state_dict


def dinov2_vitb14() -> StateDict:
    shapes = vit_shapes(width=768, patch_size=14, native_grid=37)
    shapes["mask_token"] = (1, 768)
    for block in range(12):
        shapes |= {f"blocks.{block}.{name}.gamma": (768,) for name in ("ls1", "ls2")}
    return _values(shapes)


def vit_shapes(
    width: int, patch_size: int, native_grid: int, depth: int = 12
) -> dict[str, tuple[int, ...]]:
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + native_grid**2, width),
        "patch_embed.proj.weight": (width, 3, patch_size, patch_size),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    layers = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
        "norm1": (width,),
        "norm2": (width,),
    }
    for block in range(depth):
        for layer, shape in layers.items():
            shapes[f"blocks.{block}.{layer}.weight"] = shape
            shapes[f"blocks.{block}.{layer}.bias"] = shape[:1]
    return shapes


def _values(shapes: Mapping[str, tuple[int, ...]]) -> StateDict:
    return {name: _value(name, shape) for name, shape in shapes.items()}


def _value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    r = rng.standard_normal(shape).astype(np.float32)
    if name.startswith("lin"):
        return np.abs(r) / np.float32(shape[1])
    if name.endswith(("_token", "pos_embed", "bias")):
        return np.float32(0.1) * r
    if name.endswith("gamma") or len(shape) == 1:
        return 1 + np.float32(0.1) * r
    return r * np.float32(math.sqrt(2 / math.prod(shape[1:])))
