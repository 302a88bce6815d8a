"""What edits keep of an image, and how good what they make anew is."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from nvg_jax import editing, pixels, visualize
from nvg_jax.errors import UserError
from nvg_jax.evaluation import metric
from nvg_jax.evaluation.archive import Samples
from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.streams import Seen, concatenate
from nvg_jax.generator.given import Kept

Images = UInt8[np.ndarray, "N height width 3"]


class Edited(Metric):
    """Images of the split with the part made anew that `config.edit.mask` and `invert` name.

    edited_psnr: of what is decoded at the kept positions of the latent against the image's
    reconstruction, in dB, over all of these pixels. edited_<name>: what each of
    `config.evaluation.edited.metrics` finds in the edited images, made under their own class;
    edited_other_<name>: made under another one, where all others come in turn. They are the first
    `config.evaluation.edited.num_samples` of the split, again from the first on when there are no
    more. A few are in `evaluation/edited.png`.
    """

    streams = ("split",)
    needs = frozenset({"generator"})

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.settings = self.config.evaluation.edited
        if not self.config.edit.mask:
            raise UserError("edited needs a part to make anew: set --config.edit.mask")
        kinds = metric.kinds(self.settings.metrics, self.settings.num_samples).values()
        self.needs = self.needs.union(*(kind.needs for kind in kinds))
        self.meaningful_from = max(kind.meaningful_from for kind in kinds)
        self.limit = self.settings.num_samples

    @property
    def num_images(self) -> int:
        return self.settings.num_samples

    def look(self, seen: Seen) -> dict[str, Any]:
        return {
            "image": pixels.to_uint8(seen.images),
            "class": seen.labels,
            "latent": seen.latents,
            "structure": seen.sequence.structure,
            "reconstruction": pixels.to_uint8(seen.reconstructions),
        }

    def result(self, resources: Resources) -> dict[str, Any]:
        grid, seen = resources.tokenizer.grid, concatenate(self.parts)
        rows = np.arange(self.settings.num_samples) % len(seen["class"])
        seen = {name: x[rows] for name, x in seen.items()}
        part, free = editing.edited_part(self.config, grid)
        share = editing.share_of_new(part, grid)
        kept = Kept(np.where(free, -1, seen["structure"]), seen["latent"])
        results, edited = {}, {}
        classes = {
            "edited": seen["class"],
            "edited_other": _others(seen["class"], self.config.data.num_classes),
        }
        for name, class_ids in classes.items():
            made = resources.generate(class_ids, name, kept=kept)
            if name == "edited":
                results["edited_psnr"] = _psnr(made, seen["reconstruction"], ~free.reshape(grid))
            edited[name] = editing.blended(made, seen["image"], share)
            samples = Samples(edited[name], class_ids)
            found = metric.of_samples(self.settings.metrics, resources, samples)
            results |= {f"{name}_{what}": value for what, value in found.items()}
        shown = [np.repeat(np.uint8(255 * share), 3, axis=-1)] * len(rows)
        table = [seen["image"], shown, edited["edited"], edited["edited_other"]]
        captions = [
            f"class {before}, {after}" for before, after in zip(*classes.values(), strict=True)
        ]
        picture = visualize.table(
            [list(row[:10]) for row in table],
            captions[:10],
            ["image", "edited part", "own class", "another class"],
        )
        resources.save_picture("edited.png", picture)
        return results | {"edited_num_samples": len(rows)}


def _others(class_ids: Int[np.ndarray, "N"], num_classes: int) -> Int[np.ndarray, "N"]:
    """For each image another class: the next one, the one after it, and so on. With a single class
    there is no other."""
    step = 1 + np.arange(len(class_ids)) % max(num_classes - 1, 1)
    return ((class_ids + step) % num_classes).astype(np.int32)


def _psnr(made: Images, expected: Images, kept: Bool[np.ndarray, "rows columns"]) -> float:
    """Over the pixels of the kept positions of all images, in dB."""
    scale = made.shape[1] // len(kept)
    where = np.kron(kept, np.ones((scale, scale), bool))
    error = made[:, where].astype(np.float64) - expected[:, where]
    return float(10 * np.log10(255**2 / np.mean(error**2)))
