"""What is behind the page: a model, and what a visitor can have it make. Nothing here is Gradio."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from einops import repeat
from etils import epath
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from nvg_jax import control, editing, files, pixels, sharding, visualize
from nvg_jax.demo import bounds, drawing
from nvg_jax.evaluation.archive import Samples, save_samples
from nvg_jax.generator.given import Given, Kept, given_structure
from nvg_jax.granularity import GranularitySequence
from nvg_jax.jobs.editing import kept_part
from nvg_jax.jobs.generation import sampling_settings, stages
from nvg_jax.jobs.given import tokenized, what_became
from nvg_jax.jobs.model import Model, load_model
from nvg_jax.tokenizer import inference
from nvg_jax.visualize import Picture

FILES = ("samples.npz", "samples.png", "sequences.npz", "stages.png")  # That `Made.save` writes.
CELL = 128  # Images are shown at least this wide.
_RED, _PALE = (230, 70, 60), (235, 235, 235)


class Wishes(NamedTuple):
    """What is asked of samples, as a visitor sends it: `bounds` says what is made of each."""

    choice: Any
    seed: Any
    count: Any
    strength: Any
    temperature: Any
    steps: Any


@dataclasses.dataclass(frozen=True)
class Made:
    """Samples after one of these stages. history: of the first sample, each stage's image."""

    stage: int
    stages: tuple[int, ...]
    class_ids: list[int | None]
    sequence: GranularitySequence
    images: UInt8[np.ndarray, "N size size 3"]
    history: list[UInt8[np.ndarray, "size size 3"]]
    grid: tuple[int, int]

    @property
    def is_last(self) -> bool:
        return self.stage == self.stages[-1]

    @property
    def words(self) -> str:
        if self.is_last:
            return f"{len(self.images)} made in {len(self.stages)} stages."
        tokens = 2**self.stage
        return f"Stage {self.stage} of {self.stages[-1]}: {tokens} token{'s' * (tokens > 1)}"

    def picture(self) -> Picture:
        """The canvases, side by side."""
        return self._grid(self.images)

    def maps(self) -> Picture:
        """The structure maps of the stage, as the canvases."""
        size = self.images.shape[1]
        maps = np.stack([self._maps(row)[-1] for row in self.sequence.structure])
        scale = [size // cells for cells in self.grid]
        return self._grid(repeat(maps, "n h w c -> n (h p) (w q) c", p=scale[0], q=scale[1]))

    def strip(self) -> Picture:
        """The first sample, stage by stage."""
        captions = [f"stage {stage}" for stage in self.stages]
        rows = [self.history, self._maps(self.sequence.structure[0])]
        return visualize.table(rows, captions, group=2)

    def save(self, folder: epath.PathLike) -> list[str]:
        """Writes all of it to a new folder, and gives the files' names."""
        folder = epath.Path(folder)
        folder.mkdir(parents=True)
        class_ids = None if None in self.class_ids else np.asarray(self.class_ids, np.int32)
        visualize.save_png(folder / "samples.png", visualize.grid(self.images))
        visualize.save_png(folder / "stages.png", self.strip())
        save_samples(folder / "samples.npz", Samples(self.images, class_ids))
        with files.replacing(folder / "sequences.npz") as file:
            np.savez(file, **self.sequence._asdict())
        return [str(folder / name) for name in FILES]

    def _maps(self, structure: Int[np.ndarray, "L"]) -> list[Picture]:
        stages = self.stages[: self.stages.index(self.stage) + 1]
        return visualize.structure_maps(structure, self.grid, stages)

    def _grid(self, images: UInt8[np.ndarray, "N height width 3"]) -> Picture:
        scale = -(-CELL // images.shape[2])
        return visualize.grid(images, columns=min(len(images), 4), scale=scale)


@dataclasses.dataclass(frozen=True)
class Guide:
    """A drawn map, and what was made of it: pictures, words, and what it gives of samples."""

    pictures: Picture
    words: str
    given: Given


class Studio:
    """A model and its sampling, for one visitor at a time.

    most: samples that may be made at once. So many are always computed, so that one program of each
    kind serves all requests.
    """

    def __init__(self, config: ConfigDict, workdir: str, most: int):
        self.config, self.most = config, most
        self.model: Model = load_model(config, workdir)
        self.size, self.grid = config.data.image_size, self.model.tokenizer.grid
        self.num_stages = self.model.tokenizer.last_stage + 1  # Of structure.

    def warm_up(self) -> None:
        """Does all of it once, so that no visitor has to wait for programs to be compiled."""
        sampling = self.config.sampling
        wishes = Wishes(bounds.IN_TURN, 0, 1, 1.0, sampling.temperature, sampling.flow_steps)
        *_, made = self.samples(wishes)
        self.taken_apart(made.images[0])
        half = np.zeros((self.size, self.size, 4), np.uint8)
        half[: self.size // 2, :, -1] = 255
        for every in (
            self.samples(wishes, given=self.kept_stages(made.images[0], 2, 1)),
            self.variants(made.images[0], [half], wishes),
        ):
            for _ in every:
                pass

    def samples(
        self, wishes: Wishes, given: Given | None = None, kept: Kept | None = None
    ) -> Iterator[Made]:
        """Samples after every stage; the last is what the job `sample` would make.

        UserError: a wish that `bounds` refuses.
        """
        count = bounds.whole(wishes.count, 1, self.most, "the number of images")
        classes = bounds.classes(wishes.choice, count, self.config.data.num_classes)
        seed = bounds.whole(wishes.seed, 0, bounds.MAX_SEED, "the seed")
        whole_batch = (classes * self.most)[: self.most]
        history: list[Picture] = []
        every = stages(self.model, self._settings(wishes), whole_batch, seed, given, kept)
        painted = self.model.tokenizer.stages
        for stage, (sequence, images) in zip(painted, every, strict=True):
            sequence = jax.tree.map(lambda x: x[:count], sequence)
            history = [*history, images[0]]
            yield Made(stage, painted, classes, sequence, images[:count], history, self.grid)

    def guide(self, drawn: drawing.Picture | None, count: Any) -> Guide:
        """What a drawn map of two or four levels becomes.

        UserError: nothing or a single level was drawn.
        """
        count = bounds.whole(count, 2, 4, "levels")
        levels = drawing.levels_of(drawn, self.grid, count)
        num_stages = control.stages_for(levels)
        structure = control.structure_from_map(levels, self.grid, max(num_stages, 2))
        after = drawing.levels_after(levels, structure, self.grid, num_stages)
        changed = np.asarray([_PALE, _RED], np.uint8)[(after != levels).astype(int)]
        shown = [*(drawing.colours(count)[x] for x in (levels, after)), changed]
        maps = visualize.structure_maps(structure, self.grid, range(num_stages))
        captions = ["as drawn", "balanced", "what changed"]
        captions += [f"stage {stage}" for stage in range(1, num_stages)]
        words = what_became(levels, structure, self.grid, num_stages)
        share = 100 * np.mean(after != levels)
        words = f"Your drawing gives {words}. {share:.3g}% of the picture changed its level."
        pictures = visualize.table([[*shown, *maps[1:]]], captions)
        return Guide(pictures, words, given_structure(structure[None], num_stages))

    def square(self, path: str | None) -> UInt8[np.ndarray, "size size 3"]:
        """The part of an uploaded image that the model sees."""
        return bounds.upload(path, self.size)

    def taken_apart(self, image: UInt8[np.ndarray, "size size 3"]) -> Picture:
        """An image's structure and canvas at every stage."""
        sequence = self._sequence(image)
        tokenizer, variables = self.model.tokenizer, self.model.tokenizer_variables
        decoded = sharding.on_host(inference.stage_images_of(tokenizer, variables, sequence))
        rest = tokenizer.captions, image[None], tokenizer.stages
        return visualize.strips(decoded, sequence.structure, self.grid, *rest)

    def kept_stages(
        self, image: UInt8[np.ndarray, "size size 3"], structure_stages: Any, content_stages: Any
    ) -> Given:
        """The first stages of an image. Content needs the structure that it is painted on."""
        of_structure = bounds.whole(structure_stages, 0, self.num_stages, "stages of structure")
        of_content = bounds.whole(content_stages, 0, self.num_stages, "stages of content")
        return Given(self._sequence(image), of_structure, min(of_content, max(of_structure, 1)))

    def variants(
        self,
        image: UInt8[np.ndarray, "size size 3"],
        layers: list[drawing.Picture] | None,
        wishes: Wishes,
    ) -> Iterator[Made]:
        """Samples that keep what was not brushed over, as the job `edit` makes them.

        UserError: nothing or all was brushed over.
        """
        part = drawing.mask_of(layers, self.size)
        free = editing.free_positions(part, self.grid, "your brush")
        as_float = pixels.from_uint8(image)
        _, kept = kept_part(self.config, self.model, as_float, free)
        blend = functools.partial(
            editing.blended, original=image, share=editing.share_of_new(part, self.grid)
        )
        for made in self.samples(wishes, kept=kept):
            yield dataclasses.replace(
                made, images=blend(made.images), history=[blend(x) for x in made.history]
            )

    def _settings(self, wishes: Wishes) -> Any:
        strength = bounds.number(wishes.strength, 0.0, bounds.MAX_STRENGTH, "the guidance")
        changes = {
            f"{name}_guidance": tuple(
                1 + strength * (x - 1) for x in self.config.sampling[f"{name}_guidance"]
            )
            for name in ("content", "structure")
        }
        changes["temperature"] = bounds.number(
            wishes.temperature, 0.0, bounds.MAX_TEMPERATURE, "the temperature"
        )
        changes["flow_steps"] = bounds.nearest_steps(wishes.steps)
        config = self.config.copy_and_resolve_references()
        config.sampling.update(changes)
        return sampling_settings(config)

    def _sequence(self, image: UInt8[np.ndarray, "size size 3"]) -> GranularitySequence:
        as_float = pixels.from_uint8(image)
        tokenizer, variables = self.model.tokenizer, self.model.tokenizer_variables
        return tokenized(self.config, as_float, inference.sequences_of, tokenizer, variables)
