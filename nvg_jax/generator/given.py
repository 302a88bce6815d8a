"""What the sampler does not generate: the first stages, or some of the positions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from nvg_jax.granularity import GranularitySequence


class Given(NamedTuple):
    """What is not generated: the structure maps and the tokens of the first stages.

    sequence: holds them; what it has of later stages does not matter.
    structure_stages: how many stages, from 0 on, take their map from the sequence; 0..K + 1. (That
      of stage 0 is the same for all images.)
    content_stages: how many take their tokens from it, if they are painted; at most as many as
      their map, or 1.
    """

    sequence: GranularitySequence
    structure_stages: int
    content_stages: int


def given_structure(structure: Int[Array | np.ndarray, "B L"], stages: int) -> Given:
    """The structure of the first stages, from 0 on, and no content."""
    no_tokens = np.zeros((len(structure), 0), np.int32)
    return Given(GranularitySequence(structure, no_tokens), stages, 0)


class Kept(NamedTuple):
    """What is kept of an image, position by position: structure and content of some of them.

    A cluster of any stage then has the kept positions that it has in the image, and as many others.
    Its token is drawn if it has no kept ones; else it is the nearest to what these lack on average.

    structure: the leaves of the kept positions, -1 at the others. latent: of the whole image.
    """

    structure: Int[Array | np.ndarray, "B L"]
    latent: Float[Array | np.ndarray, "B L C"]
