"""What each value of a config may be: one table, which pydantic checks."""

from __future__ import annotations

import reprlib
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from ml_collections import ConfigDict
from pydantic import Field

from nvg_jax.clustering import CLUSTERINGS
from nvg_jax.errors import UserError
from nvg_jax.precision import PRECISIONS
from nvg_jax.tokenizer.autoencoder import REMAT

_LARGEST = 2**31 - 1  # What an int32 holds.
_Whole = Annotated[int, Field(ge=0, le=_LARGEST)]
_Count = Annotated[int, Field(ge=1, le=_LARGEST)]
_Number = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_BelowOne = Annotated[float, Field(ge=0, lt=1)]
_FromMinusOne = Annotated[int, Field(ge=-1, le=_LARGEST)]
_PAIR = Field(min_length=2, max_length=2)
_Ramp = Annotated[tuple[_Number, ...], _PAIR]
# Metrics of samples and of nothing else.
_OF_SAMPLES = ("fid", "sfid", "inception_score", "precision_recall")
_OF_SAMPLES += ("classifier_agreement", "class_agreement", "diversity")

# By the ends of names, of which the longest counts. A value without an entry may be what its type
# allows: a number from 0 on, any text, a tuple of texts.
TABLE: dict[str, Any] = {
    "seed": Annotated[int, Field(ge=0, lt=2**32)],
    "config.stages": tuple[_Whole, ...],
    "batch_size": _Count,
    "microbatches": _Count,
    "stage_stride": _Count,
    "training.epochs": _Positive,
    "classifier.epochs": _Positive,
    "log_every": _Count,
    "image_every": _Count,
    "checkpoint_every": _Count,
    "keep_checkpoints": _Count,
    "warmup_from": _Fraction,
    "decay_start": _Fraction,
    "decay_to": _Fraction,
    "schedule": Literal["cosine", "linear"],
    "clip_norm": _Positive,
    "ema_decay": _BelowOne,
    "data.dataset": Annotated[str, Field(min_length=1)],
    "data.num_classes": _Count,
    "data.image_size": _Count,
    "data.resize_ratio": Annotated[float, Field(ge=1, le=100)],
    "mesh.data": _FromMinusOne,
    "mesh.fsdp": _FromMinusOne,
    "mesh.tensor": _FromMinusOne,
    "token_cache.num_crops": _Count,
    "token_cache.shard_size": _Count,
    "tokenizer.scale_batches": _Count,
    "tokenizer.model.width": _Count,
    "tokenizer.model.multipliers": Annotated[tuple[_Count, ...], Field(min_length=1)],
    "tokenizer.model.num_blocks": _Count,
    "tokenizer.model.norm_groups": _Count,
    "tokenizer.model.latent_channels": _Count,
    "tokenizer.model.vocab_size": _Count,
    "tokenizer.model.clustering": Literal[tuple(CLUSTERINGS)],
    "tokenizer.model.scales": tuple[_Count, ...],
    "tokenizer.model.precision": Literal[tuple(PRECISIONS)],
    "tokenizer.model.dtype": Literal["float32", "bfloat16"],
    "tokenizer.model.remat": Literal[tuple(REMAT)],
    "discriminator.input_size": _Count,
    "generator.model.depth": _Count,
    "generator.model.content_width": _Count,
    "generator.model.content_heads": _Count,
    "generator.model.structure_width": _Count,
    "generator.model.structure_heads": _Count,
    "generator.model.drop_path": _BelowOne,
    "generator.training.class_dropout": _Fraction,
    "repa.hidden": _Count,
    "num_samples": _Count,
    "evaluation.num_samples": _Whole,
    "sampling.classes": tuple[_Whole, ...],
    "sampling.content_guidance": _Ramp,
    "sampling.structure_guidance": _Ramp,
    "sampling.top_p": Annotated[tuple[_Fraction, ...], _PAIR],
    "sampling.flow_steps": _Count,
    "sampling.structure_stages": tuple[_Whole, ...],
    "evaluation.features": Literal["inception", "classifier"],
    "variation.distance": Literal["lpips", "features"],
    "variation.num_references": _Count,
    "variation.num_samples": Annotated[int, Field(ge=2, le=_LARGEST)],
    "guided.stages": _Count,
    "edited.metrics": Annotated[tuple[Literal[_OF_SAMPLES], ...], Field(min_length=1)],
    "structure_gap.metrics": Annotated[tuple[Literal[_OF_SAMPLES], ...], Field(min_length=1)],
    "structure_gap.stages": tuple[_Whole, ...],
    "structure_stability.num_images": _Count,
    "structure_stability.noise": tuple[_Number, ...],
    "structure_stability.jpeg": tuple[Annotated[int, Field(ge=1, le=100)], ...],
    "structure_stability.shifts": tuple[_Whole, ...],
    "structure_stability.clusterings": tuple[Literal[tuple(CLUSTERINGS)], ...],
    "edit.class_id": _FromMinusOne,
    "export.format": Literal["orbax", "safetensors"],
    "export.dtype": Literal["float32", "bfloat16", "float16"],
    "compile.tasks": tuple[Literal["tokenizer", "generator", "sample"], ...],
    "evaluation.num_pictures": _Count,
}
_BY_TYPE = {bool: bool, int: _Whole, float: _Number, str: str, tuple: tuple[str, ...]}


def check(
    values: ConfigDict | Mapping[str, Any],
    name: str,
    more: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
    """Raises UserError, a ValueError, with every value that is not what it may be, in one line.

    name: of the values, as 'config' or 'config.sampling'. more: entries of the table that only the
    caller knows.
    """
    if mistakes := list(_mistakes(values, name, TABLE | more)):
        raise UserError("; ".join(mistakes))


def _mistakes(
    values: ConfigDict | Mapping[str, Any], name: str, table: Mapping[str, Any]
) -> Iterator[str]:
    for key in values:
        value, full = values[key], f"{name}.{key}"
        if isinstance(value, ConfigDict):
            yield from _mistakes(value, full, table)
        else:
            plain = value.item() if isinstance(value, np.generic) else value
            plain = tuple(plain) if isinstance(plain, list) else plain  # As JSON has it.
            adapter = pydantic.TypeAdapter(_type(full, plain, table))
            try:
                adapter.validate_python(plain, strict=True)
            except pydantic.ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                yield f"{full}={reprlib.repr(value)}: {_words(first['msg'])}"


def _type(name: str, value: Any, table: Mapping[str, Any]) -> Any:
    parts = name.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts)))
    return next((table[end] for end in ends if end in table), _BY_TYPE.get(type(value), Any))


def _words(message: str) -> str:
    message = message.replace("Input should", "it has to").replace("Tuple should", "it has to")
    return message.replace(" after validation", "")
