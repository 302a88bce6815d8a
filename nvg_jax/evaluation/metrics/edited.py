"""What edits keep of an image, and how good what they make anew is."""

from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from nvg_jax import control, editing, pixels, visualize
from nvg_jax.errors import UserError
from nvg_jax.evaluation import metric
from nvg_jax.evaluation.archive import Samples
from nvg_jax.evaluation.metric import Resources
from nvg_jax.evaluation.streams import Seen
from nvg_jax.generator.given import Kept
from nvg_jax.tokenizer.model import build_tokenizer

Images = UInt8[np.ndarray, "N height width 3"]


class Edited(metric.OfOwnSamples):
    """Images of the split with the part made anew that `config.edit.mask` and `invert` name.

    edited_psnr: of what is decoded at the kept positions of the latent against the image's
    reconstruction, in dB, over all of these pixels. edited_<name>: what each of
    `config.evaluation.edited.metrics` finds in the edited images, made under their own class;
    edited_other_<name>: made under another one, where all others come in turn. They are the first
    `config.evaluation.edited.num_samples` of the split, again from the first on when there are no
    more. A few are in `evaluation/edited.png`.
    """

    name = "edited"

    def __init__(self, *args: Any):
        super().__init__(*args)
        if not self.config.edit.mask:
            raise UserError("edited needs a part to make anew: set --config.edit.mask")
        self.grid = build_tokenizer(self.config).grid
        self.part, self.free = editing.edited_part(self.config, self.grid)

    def look(self, seen: Seen) -> dict[str, Any]:
        return {
            "image": pixels.to_uint8(seen.images),
            "class": seen.labels,
            "latent": seen.latents,
            "structure": seen.sequence.structure,
            "reconstruction": pixels.to_uint8(seen.reconstructions),
        }

    def result(self, resources: Resources) -> dict[str, Any]:
        seen, share = self.rows(), editing.share_of_new(self.part, self.grid)
        kept = Kept(np.where(self.free, -1, seen["structure"]), seen["latent"])
        results, table = {}, [seen["image"], [visualize.grey(share[..., 0])] * self.num_images]
        others = _others(seen["class"], self.config.data.num_classes)
        for name, class_ids in (("edited", seen["class"]), ("edited_other", others)):
            made = resources.generate(class_ids, name, kept=kept)
            if name == "edited":
                results["edited_psnr"] = self._psnr(made, seen["reconstruction"])
            images = editing.blended(made, seen["image"], share)
            table.append(images)
            samples = Samples(images, class_ids)
            found = metric.of_samples(self.settings.metrics, resources, samples)
            results |= {f"{name}_{what}": value for what, value in found.items()}
        pairs = zip(seen["class"][:10], others[:10], strict=True)
        picture = visualize.table(
            [list(row[:10]) for row in table],
            [f"class {before}, {after}" for before, after in pairs],
            ["image", "edited part", "own class", "another class"],
        )
        resources.save_picture("edited.png", picture)
        return results | {"edited_num_samples": self.num_images}

    def _psnr(self, made: Images, expected: Images) -> float:
        """Over the pixels of the kept positions of all images, in dB."""
        where = control.enlarged(~self.free.reshape(self.grid), made.shape[1:3])
        error = made[:, where].astype(np.float64) - expected[:, where]
        return float(10 * np.log10(255**2 / np.mean(error**2)))


def _others(class_ids: Int[np.ndarray, "N"], num_classes: int) -> Int[np.ndarray, "N"]:
    """For each image another class: the next one, the one after it, and so on. With a single class
    there is no other."""
    step = 1 + np.arange(len(class_ids)) % max(num_classes - 1, 1)
    return ((class_ids + step) % num_classes).astype(np.int32)
