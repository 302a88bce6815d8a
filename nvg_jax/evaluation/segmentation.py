"""How well structure maps and generated images agree with segmentation masks.

Bears on whether the structure of an image has a meaning, which the paper leaves open.
"""

from typing import NamedTuple

import numpy as np
from einops import reduce
from jaxtyping import Array, Bool, Float, Int, Integer, UInt8
from scipy import ndimage

from nvg_jax import granularity
from nvg_jax.errors import UserError

BOUNDARY_REACH = 2


def object_masks(
    masks: UInt8[np.ndarray, "B height width"], dataset: str
) -> Bool[np.ndarray, "B height width"]:
    """True where the object is; UserError if the masks of the dataset are of several objects."""
    if masks.max() > 1:
        raise UserError(
            f"the masks of {dataset} have {masks.max() + 1} segments: structure_miou is defined "
            "for two, an object (1) and its background (0); the metric segments for any number"
        )
    return masks == 1


def structure_miou(
    structure: Int[Array | np.ndarray, "B L"],
    masks: Bool[np.ndarray, "B height width"],
    grid: tuple[int, int],
) -> Float[np.ndarray, "B stages"]:
    """Mean IoU of object and background at every stage k = 0..K, in [0, 1].

    The 2^k clusters of the stage are assigned to the two segments in the way that gives the highest
    mean over both of the IoU between the segment and the union of its clusters. Every stage can do
    what the one before it does.

    Args:
      structure: each position's leaf, a permutation of 0..L-1 per image.
      masks: True where the object is. A position stands for a block of pixels.
      grid: (h, w) of the latent positions, h * w = L.

    Raises:
      UserError: the masks cannot be cut into such blocks.
    """
    structure = np.asarray(structure)
    height, width = masks.shape[1:]
    if height % grid[0] or width % grid[1]:
        raise UserError(
            f"masks of {height}x{width} pixels cannot be cut into {grid[0]}x{grid[1]} equal "
            "blocks, one per latent position: resize them to the size of the model's images"
        )
    per_position = reduce(masks, "b (h y) (w x) -> b (h w)", "sum", h=grid[0], w=grid[1]).reshape(
        structure.shape
    )
    per_leaf = np.take_along_axis(per_position, np.argsort(structure, axis=1), axis=1)
    stages = []
    for stage in range(granularity.last_stage(structure.shape[1]) + 1):
        per_cluster = reduce(per_leaf, "b (n l) -> b n", "sum", n=2**stage)
        stages.append(_best_miou(per_cluster, height * width))
    return np.stack(stages, axis=1)


def _best_miou(per_cluster: Int[np.ndarray, "B N"], num_pixels: int) -> Float[np.ndarray, "B"]:
    """Of the best assignment, from the object pixels of each of N equally large clusters.

    With as many clusters given to the object, both IoUs grow with the object pixels in them: only
    N + 1 assignments can be the best, those of the clusters with most object pixels.
    """
    num_images, num_clusters = per_cluster.shape
    most_first = -np.sort(-per_cluster, axis=1)
    hits = np.concatenate([np.zeros((num_images, 1), int), most_first.cumsum(axis=1)], axis=1)
    object_pixels = hits[:, -1:]
    assigned = np.arange(num_clusters + 1) * (num_pixels // num_clusters)
    object_iou = _ratio(hits, object_pixels + assigned - hits)
    background_iou = _ratio(num_pixels - assigned - object_pixels + hits, num_pixels - hits)
    return ((object_iou + background_iou) / 2).max(axis=1)


class Segments(NamedTuple):
    """How well a map's clusters can tell segments, in [0, 1]; each takes its most frequent one.

    accuracy: the share of pixels whose cluster took their segment. miou: mean over the segments of
    the IoU with what took them. boundary_recall: the share of pixels on the segments' boundaries
    from which one of the map's is at most BOUNDARY_REACH pixels away; 1 where there are none.
    """

    accuracy: float
    miou: float
    boundary_recall: float


def segments(
    labels: Int[np.ndarray, "height width"], mask: Integer[np.ndarray, "height width"]
) -> Segments:
    """What a map of clusters with any labels tells of a mask with any number of segments."""
    _, cluster = np.unique(labels, return_inverse=True)
    _, segment = np.unique(mask, return_inverse=True)
    common = np.zeros((cluster.max() + 1, segment.max() + 1), int)  # Pixels of both.
    np.add.at(common, (cluster.reshape(mask.shape), segment.reshape(mask.shape)), 1)
    taken = np.zeros_like(common)
    np.put_along_axis(taken, common.argmax(axis=1)[:, None], 1, axis=1)
    hits = (common * taken).sum(axis=0)
    assigned = common.sum(axis=1) @ taken
    edges, wanted = boundary(labels), boundary(mask)
    near = ndimage.distance_transform_cdt(~edges, "chessboard") if edges.any() else np.inf
    return Segments(
        float(hits.sum() / mask.size),
        float(_ratio(hits, common.sum(axis=0) + assigned - hits).mean()),
        float(np.mean((near <= BOUNDARY_REACH) & wanted, where=wanted)) if wanted.any() else 1.0,
    )


def boundary(labels: Integer[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """The pixels that differ from the next one to the right or below."""
    found = np.zeros(labels.shape, bool)
    found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    found[:-1] |= labels[:-1] != labels[1:]
    return found


def iou(
    a: Bool[np.ndarray, "B height width"], b: Bool[np.ndarray, "B height width"]
) -> Float[np.ndarray, "B"]:
    """Intersection over union of two masks, in [0, 1]; 1 if both are empty."""
    return _ratio((a & b).sum(axis=(1, 2)), (a | b).sum(axis=(1, 2)))


def _ratio(intersection: Int[np.ndarray, "..."], union: Int[np.ndarray, "..."]) -> np.ndarray:
    """IoU from numbers of pixels."""
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))
