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
CARRIED_PREFIX = "first_stage_model."

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

    Its raw weights are taken, on which the generators were trained, and not their moving averages.

    canvas_scales: as `canvas_scales_of` finds them in the generator trained on this tokenizer; by
    default those published for the released one. UserError names every tensor that is missing, not
    expected or of another shape.
    """
    shapes = parameter_shapes(tokenizer.init_variables)
    tensors = _below(state_dict, _TOKENIZER_ROOTS)
    if not tensors:
        raise UserError(f"the checkpoint is no tokenizer: no {_any_of(_TOKENIZER_ROOTS)}")
    params = translate(tensors, shapes, _release(_TOKENIZER_NAMES))
    scales = PUBLISHED_CANVAS_SCALES if canvas_scales is None else canvas_scales
    if len(scales) != tokenizer.last_stage + 2:
        raise UserError(
            f"{len(scales)} canvas scales do not fit the {tokenizer.last_stage + 2} canvases of "
            "this tokenizer: convert it together with its generator, which holds them"
        )
    return {"params": params, "stats": {"quantizer": {"canvas_scales": scales.astype(np.float32)}}}


def generator_variables(state_dict: Tensors, generator: Generator) -> dict[str, Any]:
    """The variables of `generator` (`params`) from a released generator's state_dict.

    The moving averages are taken if the checkpoint has them, with which generators are evaluated.

    UserError names every tensor that is missing, not expected or of another shape.
    """
    shapes = parameter_shapes(generator.init_variables)
    averaged = _below(state_dict, _GENERATOR_ROOTS, EMA_PREFIX)
    tensors = averaged or _below(state_dict, _GENERATOR_ROOTS)
    if not tensors:
        raise UserError(f"the checkpoint is no generator: no {_any_of(_GENERATOR_ROOTS)}")
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


def carried_tokenizer(generator: Tensors) -> Tensors:
    """The tokenizer that a released generator was trained on, if its state_dict carries it."""
    return _below(generator, _TOKENIZER_ROOTS, CARRIED_PREFIX)


def agreeing_copy(tokenizer: Tensors, carried: Tensors) -> str:
    """Which of a released tokenizer's tensors a generator carries: the raw or the averaged ones.

    UserError says what differs if it carries neither.
    """
    problems = []
    for kind, prefix in (("raw", ""), ("averaged", EMA_PREFIX)):
        tensors = _below(tokenizer, _TOKENIZER_ROOTS, prefix)
        differing = [
            name
            for name, tensor in carried.items()
            if name not in tensors
            or not np.array_equal(np.asarray(tensors[name]), np.asarray(tensor))
        ]
        if not differing:
            return kind
        problems.append(
            f"{len(differing)} of {len(carried)} {kind} tensors differ, the first {differing[0]}"
            if tensors
            else f"there are no {kind} ones"
        )
    raise UserError(
        f"the tokenizer is not the one on which the generator was trained: {'; '.join(problems)}. "
        "Leave its file out to take the one that the generator's file carries"
    )


def _joined(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the axis that our fused layers have for their parts."""
    if path.endswith(("/linear1/kernel", "/linear1/bias")):
        return *shape[:-2], shape[-2] * shape[-1]
    if path.endswith("/linear2/kernel"):
        return *shape[:-3], shape[-3] * shape[-2], shape[-1]
    return shape


def _below(state_dict: Tensors, roots: tuple[str, ...], prefix: str = "") -> Tensors:
    """The tensors below the roots below the prefix, without the prefix."""
    starts = tuple(prefix + root for root in roots)
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state_dict.items()
        if name.startswith(starts)
    }


def _any_of(roots: tuple[str, ...]) -> str:
    return f"{' or '.join(f'{root}*' for root in roots)} is in it"


def _release(names: tuple[tuple[str, str], ...]) -> Release:
    return Release(
        names=names,
        ignored=_IGNORED,
        misfit="the checkpoint does not fit the config's model",
        advice="Choose the config that describes the checkpoint",
        leading_axis=re.compile(r"start_canvas$"),
    )
