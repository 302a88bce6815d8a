"""Images that are disturbed a little, and how far two structures agree."""

import io

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from nvg_jax import granularity

Images = UInt8[np.ndarray, "N height width 3"]


def with_noise(images: Images, sigma: float, seed: int) -> Images:
    """With Gaussian noise of a standard deviation, in levels of 8 bits; rounded and clipped.

    The noise of an image depends on the seed and its place alone, and scales with `sigma`.
    """
    rngs = (np.random.default_rng([seed, index]) for index in range(len(images)))
    noisy = (
        x + sigma * rng.standard_normal(x.shape, np.float32)
        for x, rng in zip(images, rngs, strict=True)
    )
    return np.stack([np.clip(np.round(x), 0, 255).astype(np.uint8) for x in noisy])


def as_jpeg(images: Images, quality: int) -> Images:
    """As they come back from JPEG files of a quality in 1..100, as Pillow writes them."""

    def compressed(image: UInt8[np.ndarray, "height width 3"]) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return np.stack([compressed(image) for image in images])


def shifted(images: Images, pixels: int) -> Images:
    """Moved to the right; what comes in on the left is the image's mirror image."""
    padded = np.pad(images, ((0, 0), (0, 0), (pixels, 0), (0, 0)), "symmetric")
    return padded[:, :, : images.shape[2]]


def agreement(
    one: Int[np.ndarray, "N L"],
    other: Int[np.ndarray, "N L"],
    grid: tuple[int, int],
    shift: int = 0,
) -> Float[np.ndarray, "N stages"]:
    """The adjusted Rand index of two structures of the same images at every stage k = 0..K.

    grid: (h, w) of the latent positions, h * w = L. shift: by how many columns, less than w, the
    images of `other` are moved to the right; the columns that both have are compared.
    """
    stages = []
    for stage in range(granularity.last_stage(one.shape[1]) + 1):
        a, b = (granularity.labels_at(x, stage).reshape(-1, *grid) for x in (one, other))
        a, b = a[:, :, : grid[1] - shift], b[:, :, shift:]
        pairs = zip(a.reshape(len(a), -1), b.reshape(len(b), -1), strict=True)
        stages.append([adjusted_rand_index(*pair) for pair in pairs])
    return np.array(stages).T


def adjusted_rand_index(a: Int[np.ndarray, "N"], b: Int[np.ndarray, "N"]) -> float:
    """How far two partitions of the same things agree, whatever their clusters are called.

    1: they are the same. 0: as far as by chance, where the clusters have the sizes that they have;
    below it less (Hubert and Arabie, 1985). a, b: each thing's cluster, from 0 on.
    """
    in_a, in_b, in_both = map(_pairs, (a, b, a * (b.max() + 1) + b))
    by_chance, most = in_a * in_b / (len(a) * (len(a) - 1) / 2), (in_a + in_b) / 2
    return 1.0 if most == by_chance else (in_both - by_chance) / (most - by_chance)


def _pairs(labels: Int[np.ndarray, "N"]) -> float:
    """How many pairs share a cluster."""
    counts = np.bincount(labels)
    return (counts * (counts - 1)).sum() / 2
