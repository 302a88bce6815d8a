"""What generators of a single stack of blocks have in common."""

from __future__ import annotations

import dataclasses

from nvg_jax.generator.sizes import StackSizes, num_classes_of


@dataclasses.dataclass(frozen=True)
class OneStackSizes:
    """Class ids are 0..num_classes - 1; `num_classes` itself means "no class"."""

    stack: StackSizes
    grid: tuple[int, int]
    latent_channels: int
    num_classes: int

    def without_remat(self) -> OneStackSizes:
        """The same generator, of which nothing is computed twice."""
        return dataclasses.replace(self, stack=dataclasses.replace(self.stack, remat="none"))


@dataclasses.dataclass(frozen=True)
class OneStackGenerator:
    """A network over the latents or tokens of one tokenizer."""

    sizes: OneStackSizes

    def begun_as(self, architecture: str) -> OneStackGenerator:
        """The generator of another's line, which may be of another number of classes, if training
        of this one may start at its weights. If not, one that differs from it."""
        num_classes = num_classes_of(architecture, self.sizes.num_classes)
        sizes = dataclasses.replace(self.sizes, num_classes=num_classes)
        return dataclasses.replace(self, sizes=sizes)
