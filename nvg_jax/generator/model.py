"""The generator: content and structure side by side, as they are trained and sampled."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jaxtyping import Array, Key
from ml_collections import ConfigDict

from nvg_jax import allowed, keys
from nvg_jax.errors import UserError
from nvg_jax.generator.content import Content
from nvg_jax.generator.masked import MaskedBits
from nvg_jax.generator.mean_flow import MeanFlow
from nvg_jax.generator.rope import rope_axis_dims
from nvg_jax.generator.sizes import Sizes, StackSizes
from nvg_jax.generator.structure import StructureFlow
from nvg_jax.generator.transformer import ATTENTION, REMAT
from nvg_jax.tokenizer.model import build_tokenizer

STRUCTURE_GENERATORS = {"flow": StructureFlow, "mean_flow": MeanFlow, "masked": MaskedBits}
CHOICES = {  # Of `config.generator.model`.
    "generator.model.dtype": Literal["float32", "bfloat16"],
    "generator.model.remat": Literal[tuple(REMAT)],
    "generator.model.attention": Literal[tuple(ATTENTION)],
    "generator.model.structure": Literal[tuple(STRUCTURE_GENERATORS)],
}


@dataclasses.dataclass(frozen=True)
class Generator:
    """Two networks over one tokenizer's positions and codes, with parameters by their names.

    tap: blocks of the content network after which its tokens are sown (see `transformer.Stack`).
    """

    sizes: Sizes
    tap: int = 0

    @property
    def content(self) -> Content:
        return Content(self.sizes, self.tap)

    @property
    def structure(self) -> StructureFlow:
        return STRUCTURE_GENERATORS[self.sizes.structure_generator](self.sizes)

    @property
    def architecture(self) -> str:
        """What a checkpoint has to agree with, in one line."""
        return self.sizes.architecture

    def begun_as(self, architecture: str) -> Generator:
        """The generator of another's line, if training of this one may start at its weights.

        If not, one that differs from it. See `Sizes.begun_as`.
        """
        return dataclasses.replace(self, sizes=self.sizes.begun_as(architecture))

    def init_variables(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Random parameters to train from."""
        parts = {name: getattr(self, name) for name in ("content", "structure")}
        params = {name: part.init_params(keys.named(key, name)) for name, part in parts.items()}
        return {"params": params}


def build_generator(config: ConfigDict) -> Generator:
    """The generator of a whole run's config, over its tokenizer's positions and codes.

    UserError if a value is not allowed, its sizes do not fit together, or it is of another method.
    """
    if config.method != "nvg":
        raise UserError(f"config.method={config.method}: this is for the method nvg alone")
    tokenizer, model = build_tokenizer(config), config.generator.model
    if model.structure == "masked" and len(tokenizer.stages) <= tokenizer.last_stage:
        raise UserError(
            f"config.stages={tokenizer.stages}: masked bits tell nothing of later stages: leave it "
            "empty, as ()"
        )
    return Generator(
        Sizes(
            content=stack_sizes(config, "content", tokenizer.last_stage),
            structure=stack_sizes(config, "structure", tokenizer.last_stage),
            grid=tokenizer.grid,
            latent_channels=tokenizer.latent_channels,
            vocab_size=tokenizer.vocab_size,
            num_classes=config.data.num_classes,
            structure_generator=model.structure,
            guided_content=model.guided_content,
            structure_rope=model.structure_rope,
            predict_final_canvas=model.predict_final_canvas,
            noised_canvas=model.noised_canvas,
            known_structure=model.known_structure,
            ladder=tokenizer.ladder,
        )
    )


def stack_sizes(config: ConfigDict, name: str, num_bits: int) -> StackSizes:
    """The stack of the part `name` of a config, with RoPE of so many structure channels.

    UserError if a value is not allowed, or its sizes do not fit together.
    """
    model = config.generator.model
    allowed.check(model, "config.generator.model", CHOICES)
    width, heads = model[f"{name}_width"], model[f"{name}_heads"]
    if width % (2 * heads):
        raise UserError(
            f"config.generator.model.{name}_width={width} is not an even number of dims for "
            f"each of {name}_heads={heads} heads"
        )
    rope_axis_dims(width // heads, num_bits)  # Raises if a head is too narrow.
    return StackSizes(
        depth=model.depth,
        width=width,
        num_heads=heads,
        drop_path=model.drop_path,
        remat=model.remat,
        attention=model.attention,
        dtype=model.dtype,
    )
