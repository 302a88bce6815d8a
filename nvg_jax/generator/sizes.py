"""The sizes of a generator: frozen objects that are passed whole."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from nvg_jax import granularity


@dataclasses.dataclass(frozen=True)
class StackSizes:
    """A stack of transformer blocks, and how it computes.

    drop_path: the probability that the last block is dropped for a sample; the first has none.
    remat: what the backward pass recomputes of each block, a name in `transformer.REMAT`.
    attention: its implementation, a name in `transformer.ATTENTION`.
    dtype: of the products; parameters, norms and softmax are float32.
    """

    depth: int
    width: int
    num_heads: int
    drop_path: float = 0.0
    remat: str = "none"
    attention: str = "xla"
    dtype: str = "float32"


def num_classes_of(architecture: str, otherwise: int) -> int:
    """The number of classes in a generator's line."""
    found = re.search(r"\b(\d+) classes", architecture)
    return int(found[1]) if found else otherwise


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Both parts of a generator, over the positions and codes of one tokenizer.

    The paper's generator of depth d has content width 64 d with d heads, and structure width 32 d
    with d / 2 heads. Class ids are 0..num_classes - 1; `num_classes` itself means "no class".

    structure_generator: how structure is generated, a name in `model.STRUCTURE_GENERATORS`.
    guided_content: whether the content network takes the guidance as an input.
    ladder: the stages that are painted, those of the tokenizer; empty is all.

    The switches are the ablations of the paper's Table 3, set to the full method:
    structure_rope: whether RoPE tells the blocks which cluster a position belongs to.
    predict_final_canvas: whether tokens follow from a predicted final canvas minus the canvas so
        far; else from the head's output directly.
    noised_canvas: whether the canvas is blended with noise, all noise at stage 0 and none once it
        is finished, in place of the learned start canvas.
    known_structure: whether the state of the flow holds the known structure in the channels of
        earlier stages; else they are noise like the others, and only RoPE knows the structure.
    """

    content: StackSizes
    structure: StackSizes
    grid: tuple[int, int]
    latent_channels: int
    vocab_size: int
    num_classes: int
    structure_generator: str = "flow"
    guided_content: bool = False
    structure_rope: bool = True
    predict_final_canvas: bool = True
    noised_canvas: bool = False
    known_structure: bool = True
    ladder: tuple[int, ...] = ()

    @property
    def num_positions(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def last_stage(self) -> int:
        return granularity.last_stage(self.num_positions)

    @property
    def stages(self) -> tuple[int, ...]:
        """Those that are painted, at each of which the content generator runs."""
        return granularity.painted_stages(self.ladder, self.last_stage)

    @property
    def splits(self) -> dict[int, int]:
        """The stages at which the structure generator runs, and how many are painted by then.

        It runs after each painted stage up to K - 2, and at stage 0 on the empty canvas if that is
        not painted.
        """
        stages = sorted({0, *self.stages} & set(range(self.last_stage - 1)))
        return {stage: sum(painted <= stage for painted in self.stages) for stage in stages}

    @property
    def architecture(self) -> str:
        """What a checkpoint has to agree with, in one line."""
        differing = {
            f"structure by {self.structure_generator}": self.structure_generator != "flow",
            "guided content": self.guided_content,
            "no structure RoPE": not self.structure_rope,
            "direct content": not self.predict_final_canvas,
            "noised canvas": self.noised_canvas,
            "pure-noise structure": not self.known_structure,
        }
        differences = "".join(f", {name}" for name, chosen in differing.items() if chosen)
        content, structure = self.content, self.structure
        return (
            f"generator(depth {content.depth}, content {content.width} x {content.num_heads} "
            f"heads, structure {structure.width} x {structure.num_heads} heads, "
            f"{self.num_positions} positions x {self.latent_channels}, codebook {self.vocab_size}, "
            f"{self.num_classes} classes{differences}{granularity.ladder_in_words(self.stages)})"
        )

    def begun_as(self, architecture: str) -> Sizes:
        """The same sizes with what training may change, as it stands in another's line.

        That is the number of classes; another structure generator may have been a flow, what takes
        the guidance may have been without, and the canvas need not have been noised.
        """
        num_classes = num_classes_of(architecture, self.num_classes)
        changes: dict[str, Any] = {"num_classes": num_classes}
        if "structure by" not in architecture:
            changes["structure_generator"] = "flow"
        if "guided content" not in architecture:
            changes["guided_content"] = False
        if "noised canvas" not in architecture:
            changes["noised_canvas"] = False
        return dataclasses.replace(self, **changes)

    def without_remat(self) -> Sizes:
        """The same generator, of which nothing is computed twice, nor in kernels that pad."""
        stacks = {
            name: dataclasses.replace(getattr(self, name), remat="none", attention="xla")
            for name in ("content", "structure")
        }
        return dataclasses.replace(self, **stacks)
