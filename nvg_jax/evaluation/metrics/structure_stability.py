"""Whether structure stays when its image is disturbed, or its tokenizer trained anew."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from nvg_jax import clustering, keys, pixels, sharding
from nvg_jax.arrays import check_architecture
from nvg_jax.evaluation import stability, streams
from nvg_jax.evaluation.metric import Metric, Resources
from nvg_jax.evaluation.streams import Seen
from nvg_jax.progress import track
from nvg_jax.tokenizer.model import Tokenizer, build_tokenizer
from nvg_jax.weights import load_weights, saved_architecture

# What it is called, images, the tokenizer's variables, and by how many columns images are moved.
Round = tuple[str, stability.Images, Any, int]


class StructureStability(Metric):
    """Agreement of the structures of images with those of the same images, disturbed, by stage.

    Means of `stability.agreement` (1: the same clusters, 0: chance; stages 0 and K have one choice
    only, and are 1) over the first `config.evaluation.structure_stability.num_images` images of the
    split, as they are stored:
      structure_stability_noise_<sigma>   with noise, as in `stability.with_noise`;
      structure_stability_jpeg_<quality>  from JPEG files;
      structure_stability_shift_<n>       moved to the right by n positions;
      structure_stability_other           as they are, by the tokenizer `other_tokenizer`, if any.
    With `_<name>` after them those of each of `clusterings`, of the same latents.

    UserError when it is made if the other tokenizer is none, or of another architecture.
    """

    streams = ("split",)

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.settings = self.config.evaluation.structure_stability
        self.limit = self.settings.num_images
        if other := self.settings.other_tokenizer:
            wanted = build_tokenizer(self.config).architecture
            check_architecture(other, wanted, saved_architecture(other))

    @property
    def about(self) -> dict[str, Any]:
        return {name: self.settings[name] for name in ("num_images", "other_tokenizer")}

    def look(self, seen: Seen) -> UInt8[Array, "B height width 3"]:
        return pixels.to_uint8(seen.images)

    def result(self, resources: Resources) -> dict[str, Any]:
        images, variables = np.concatenate(self.parts), resources.tokenizer_variables
        before = self._structures(images, variables, resources)
        results = {}
        rounds = self._rounds(images, resources)
        for name, disturbed, weights, shift in track(rounds, "structure stability", unit="round"):
            after = self._structures(disturbed, weights, resources)
            for ending in before:
                found = stability.agreement(
                    before[ending], after[ending], resources.tokenizer.grid, shift
                )
                results[f"structure_stability_{name}{ending}"] = found.mean(axis=0).tolist()
        return results

    def _rounds(self, images: stability.Images, resources: Resources) -> Iterator[Round]:
        settings, tokenizer = self.settings, resources.tokenizer
        variables = resources.tokenizer_variables
        seed = keys.integer(self.config.seed, "structure stability")
        for sigma in settings.noise:
            yield f"noise_{sigma:g}", stability.with_noise(images, sigma, seed), variables, 0
        for quality in settings.jpeg:
            yield f"jpeg_{quality}", stability.as_jpeg(images, quality), variables, 0
        for shift in settings.shifts:
            moved = stability.shifted(images, shift * images.shape[2] // tokenizer.grid[1])
            yield f"shift_{shift}", moved, variables, shift
        if settings.other_tokenizer:
            abstract = sharding.abstract(
                tokenizer.init_variables, resources.mesh, jax.random.key(0)
            )
            other = load_weights(settings.other_tokenizer, abstract, tokenizer.architecture)
            yield "other", images, other, 0

    def _structures(
        self, images: stability.Images, variables: Any, resources: Resources
    ) -> dict[str, Int[np.ndarray, "N L"]]:
        """The tokenizer's own, as '', and those of other clusterings of its latents."""
        names = tuple(self.settings.clusterings)
        batches = streams.of_images(images, None, resources.mesh, self.config.evaluation.batch_size)
        return streams.concatenate(
            streams.gather(
                _clustered(resources.tokenizer, names, variables, batch["image"]), batch["mask"]
            )
            for batch in batches
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _clustered(
    tokenizer: Tokenizer,
    names: tuple[str, ...],
    variables: Any,
    images: Float[Array, "B height width 3"],
) -> dict[str, Int[Array, "B L"]]:
    latent, own = tokenizer.apply(variables, images, method="cluster")
    others = {
        f"_{name}": sharding.by_device(clustering.CLUSTERINGS[name], latent) for name in names
    }
    return {"": own} | others
