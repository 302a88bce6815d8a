"""Stands in for the published files of the frozen networks: their names and shapes, made-up values.

The values follow the rule with which the reference arrays were computed; they depend on the names.
"""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

StateDict = dict[str, np.ndarray]

_VGG16_CHANNELS = {
    0: (3, 64), 2: (64, 64),
    5: (64, 128), 7: (128, 128),
    10: (128, 256), 12: (256, 256), 14: (256, 256),
    17: (256, 512), 19: (512, 512), 21: (512, 512),
    24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip

# Each convolution's name, channels of input and output, rows and columns of the kernel.
_INCEPTION_STEM = """
    Conv2d_1a_3x3 3 32 3 3, Conv2d_2a_3x3 32 32 3 3, Conv2d_2b_3x3 32 64 3 3,
    Conv2d_3b_1x1 64 80 1 1, Conv2d_4a_3x3 80 192 3 3
"""
_INCEPTION_5 = """
    branch1x1 {i} 64 1 1, branch5x5_1 {i} 48 1 1, branch5x5_2 48 64 5 5, branch_pool {i} {c} 1 1,
    branch3x3dbl_1 {i} 64 1 1, branch3x3dbl_2 64 96 3 3, branch3x3dbl_3 96 96 3 3
"""
_INCEPTION_6A = """
    branch3x3 {i} 384 3 3,
    branch3x3dbl_1 {i} 64 1 1, branch3x3dbl_2 64 96 3 3, branch3x3dbl_3 96 96 3 3
"""
_INCEPTION_6 = """
    branch1x1 {i} 192 1 1, branch_pool {i} 192 1 1,
    branch7x7_1 {i} {c} 1 1, branch7x7_2 {c} {c} 1 7, branch7x7_3 {c} 192 7 1,
    branch7x7dbl_1 {i} {c} 1 1, branch7x7dbl_2 {c} {c} 7 1, branch7x7dbl_3 {c} {c} 1 7,
    branch7x7dbl_4 {c} {c} 7 1, branch7x7dbl_5 {c} 192 1 7
"""
_INCEPTION_7A = """
    branch3x3_1 {i} 192 1 1, branch3x3_2 192 320 3 3, branch7x7x3_1 {i} 192 1 1,
    branch7x7x3_2 192 192 1 7, branch7x7x3_3 192 192 7 1, branch7x7x3_4 192 192 3 3
"""
_INCEPTION_7 = """
    branch1x1 {i} 320 1 1, branch_pool {i} 192 1 1,
    branch3x3_1 {i} 384 1 1, branch3x3_2a 384 384 1 3, branch3x3_2b 384 384 3 1,
    branch3x3dbl_1 {i} 448 1 1, branch3x3dbl_2 448 384 3 3,
    branch3x3dbl_3a 384 384 1 3, branch3x3dbl_3b 384 384 3 1
"""
_INCEPTION = {
    "": _INCEPTION_STEM,
    "Mixed_5b.": _INCEPTION_5.format(i=192, c=32),
    "Mixed_5c.": _INCEPTION_5.format(i=256, c=64),
    "Mixed_5d.": _INCEPTION_5.format(i=288, c=64),
    "Mixed_6a.": _INCEPTION_6A.format(i=288),
    "Mixed_6b.": _INCEPTION_6.format(i=768, c=128),
    "Mixed_6c.": _INCEPTION_6.format(i=768, c=160),
    "Mixed_6d.": _INCEPTION_6.format(i=768, c=160),
    "Mixed_6e.": _INCEPTION_6.format(i=768, c=192),
    "Mixed_7a.": _INCEPTION_7A.format(i=768),
    "Mixed_7b.": _INCEPTION_7.format(i=1280),
    "Mixed_7c.": _INCEPTION_7.format(i=2048),
}


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


def inception() -> StateDict:
    shapes = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    counters = {}
    for prefix, table in _INCEPTION.items():
        for convolution in table.split(","):
            name, *numbers = convolution.split()
            inputs, outputs, *kernel = map(int, numbers)
            shapes |= normed_conv_shapes(f"{prefix}{name}.", inputs, outputs, kernel)
            counters[f"{prefix}{name}.bn.num_batches_tracked"] = np.zeros((), np.int64)
    return _values(shapes) | counters


def normed_conv_shapes(
    prefix: str, inputs: int, outputs: int, kernel: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    norm = ("weight", "bias", "running_mean", "running_var")
    return {
        f"{prefix}conv.weight": (outputs, inputs, *kernel),
        **{f"{prefix}bn.{name}": (outputs,) for name in norm},
    }


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
    if name.endswith(("_token", "pos_embed", "bias", "running_mean")):
        return np.float32(0.1) * r
    if name.endswith("running_var"):
        return np.float32(0.5) * (1 + np.abs(r))
    if name.endswith("gamma") or len(shape) == 1:
        return 1 + np.float32(0.1) * r
    return r * np.float32(math.sqrt(2 / math.prod(shape[1:])))
