"""The authors' released PyTorch weights as variables of our modules: names and layouts, no PyTorch.

Each table below turns the path of one of our parameters into the release's name of it, as
`translate.Release` describes.
"""

import re
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from nvg_jax.errors import UserError
from nvg_jax.generator.model import Generator
from nvg_jax.interop.translate import Release, Tensors, parameter_shapes, translate
from nvg_jax.tokenizer.model import Tokenizer

# 1 / std of the released tokenizer's canvases, before each stage and after the last.
PUBLISHED_CANVAS_SCALES = np.array(
    [1.0, 4.1993, 3.4706, 3.0520, 2.7430, 2.4842, 2.2407, 2.0088, 1.7954, 1.6080], np.float32
)
CANVAS_SCALES_NAME = "nvgformer.scale_factors"
EMA_PREFIX = "ema_model."

_TOKENIZER_ROOTS = ("encoder.", "decoder.", "quantize.")
_TOKENIZER_NAMES = (
    (r"/(down|up)(\d+)_block(\d+)/", r"/\1.\2.block.\3/"),
    (r"/middle_block0/", "/mid.block_1/"),
    (r"/middle_block1/", "/mid.block_2/"),
    (r"/(down|up)(\d+)/", r"/\1.\2.\1sample.conv.conv/"),
    (r"/skip/", "/nin_shortcut.conv/"),
    (r"/(conv|norm)(\w+)/", r"/\1\2.\1/"),
    (r"/(kernel|scale)$", "/weight"),
    (r"^quantizer/codebook", "quantize.embedding.weight"),
    (r"^quantizer/refiner_kernel", "quantize.quant_resi.{}.weight"),
    (r"^quantizer/refiner_bias", "quantize.quant_resi.{}.bias"),
)

_GENERATOR_ROOTS = ("nvgformer.",)
_GENERATOR_NAMES = (
    (r"/(query|key)_norm/scale$", r"/norm.\1_norm.scale"),
    (r"/(kernel|embedding)$", "/weight"),
    (r"/blocks/modulation/", "/blocks/modulation.lin/"),
    (r"head/modulation/", "head/adaLN_modulation.1/"),
    (r"^content/start_canvas", "content_start_embed"),
    (r"^content/canvas_embed", "content_embed"),
    (r"^content/final_head", "x0_head"),
    (r"^content/token_head", "cls_head.linear"),
    (r"^structure/canvas_embed", "structure_content_cond_embed"),
    (r"^structure/structure_embed", "structure_embed"),
    (r"^structure/time_embed_(in|out)", r"structure_time_embed.\1_layer"),
    (r"^structure/head", "structure_head"),
    (r"^(content|structure)/(class|stage)_embed", r"\1_\2_embed"),
    (r"^(content|structure)/stack/blocks", r"\1_blocks.{}"),
    (r"^", "nvgformer."),
)

# Below the roots, but no part of our modules: the projection of the REPA loss and two buffers.
_IGNORED = re.compile(r"(^|\.)(projector|rope_ids|scale_factors)(\.|$)")


def tokenizer_variables(
    state_dict: Tensors,
    tokenizer: Tokenizer,
    canvas_scales: Float[np.ndarray, "canvases"] | None = None,
) -> dict[str, Any]:
    """The variables of `tokenizer` (`params`, `stats`) from a released tokenizer's state_dict.

    canvas_scales: as `canvas_scales_of` finds them in the generator trained on this tokenizer; by
    default those published for the released one. UserError names every tensor that is missing, not
    expected or of another shape.
    """
    shapes = parameter_shapes(tokenizer.init_variables)
    params = translate(_averaged(state_dict, _TOKENIZER_ROOTS), shapes, _release(_TOKENIZER_NAMES))
    scales = PUBLISHED_CANVAS_SCALES if canvas_scales is None else canvas_scales
    if len(scales) != tokenizer.last_stage + 2:
        raise UserError(
            f"{len(scales)} canvas scales do not fit the {tokenizer.last_stage + 2} canvases of "
            "this tokenizer: convert it together with its generator, which holds them"
        )
    return {"params": params, "stats": {"quantizer": {"canvas_scales": scales.astype(np.float32)}}}


def generator_variables(state_dict: Tensors, generator: Generator) -> dict[str, Any]:
    """The variables of `generator` (`params`) from a released generator's state_dict.

    UserError names every tensor that is missing, not expected or of another shape.
    """
    shapes = parameter_shapes(generator.init_variables)
    tensors = _averaged(state_dict, _GENERATOR_ROOTS)
    joined = {path: _joined(path, shape) for path, shape in shapes.items()}
    params = translate(tensors, joined, _release(_GENERATOR_NAMES))
    split = jax.tree_util.tree_map_with_path(
        lambda path, x: x.reshape(shapes[jax.tree_util.keystr(path, simple=True, separator="/")]),
        params,
    )
    return {"params": split}


def canvas_scales_of(state_dict: Tensors) -> Float[np.ndarray, "canvases"]:
    """The canvas scales of its tokenizer that a released generator holds, or UserError."""
    for name in (EMA_PREFIX + CANVAS_SCALES_NAME, CANVAS_SCALES_NAME):
        if name in state_dict:
            return np.asarray(state_dict[name], np.float32)
    raise UserError(f"the generator's checkpoint has no tensor {CANVAS_SCALES_NAME}")


def _joined(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the axis that our fused layers have for their parts."""
    if path.endswith(("/linear1/kernel", "/linear1/bias")):
        return *shape[:-2], shape[-2] * shape[-1]
    if path.endswith("/linear2/kernel"):
        return *shape[:-3], shape[-3] * shape[-2], shape[-1]
    return shape


def _averaged(state_dict: Tensors, roots: tuple[str, ...]) -> Tensors:
    """The tensors below the roots: their moving averages if the checkpoint has these."""
    averaged = {
        name.removeprefix(EMA_PREFIX): tensor
        for name, tensor in state_dict.items()
        if name.startswith(tuple(EMA_PREFIX + root for root in roots))
    }
    return averaged or {
        name: tensor for name, tensor in state_dict.items() if name.startswith(roots)
    }


def _release(names: tuple[tuple[str, str], ...]) -> Release:
    return Release(
        names=names,
        ignored=_IGNORED,
        misfit="the checkpoint does not fit the config's model",
        advice="Choose the config that describes the checkpoint",
        leading_axis=re.compile(r"start_canvas$"),
    )
