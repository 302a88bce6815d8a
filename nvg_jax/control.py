"""Structure from maps: masks and simple shapes become balanced, nested labels (paper, Sec. 4.3).

A map says for every pixel which segment it belongs to, as a level 0, 1, ...; bright segments have
high levels. Every stage halves every cluster, so that a map whose segments are not equally large
has to be balanced: each cluster is divided between two levels, as evenly as they allow, and where
one side is too large, its positions nearest to the boundary go to the other. Of equally near ones
those nearest to the centre of the bright side stay with it, and of these, some all around it.
"""

from __future__ import annotations

import math

import numpy as np
from einops import reduce
from etils import epath
from jaxtyping import Float, Int, Shaped

from nvg_jax import granularity, image_files
from nvg_jax.errors import UserError

Levels = Int[np.ndarray, "height width"]

_SIDES = ("left", "right", "top", "bottom")
_FORMS = {"circle": "circle:cx,cy,r", "rect": "rect:x0,y0,x1,y1"}
_ADVICE = f"choose {', '.join(_FORMS.values())}, with fractions of the side, or {', '.join(_SIDES)}"


def is_shape(text: str) -> bool:
    """Whether a text is meant for `draw_shape`, and not the name of a file."""
    return text in _SIDES or text.partition(":")[0] in _FORMS


def draw_shape(text: str, image_size: int) -> Levels:
    """A shape of level 1 on level 0, in a square map.

    It is 'circle:cx,cy,r', 'rect:x0,y0,x1,y1' (x to the right, y down, 0..1 over the image),
    'left', 'right', 'top' or 'bottom'. UserError: it is none of these, or covers no pixel of the
    picture, or all.
    """
    center = (np.arange(image_size) + 0.5) / image_size
    x, y = center[None, :], center[:, None]
    name, _, rest = text.partition(":")
    try:
        numbers = [float(number) for number in rest.split(",")] if rest else []
        if name == "circle":
            cx, cy, radius = numbers
            inside = np.hypot(x - cx, y - cy) <= radius
        elif name == "rect":
            x0, y0, x1, y1 = numbers
            inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
        elif name in _SIDES and not numbers:
            half = {"left": x < 0.5, "right": x > 0.5, "top": y < 0.5, "bottom": y > 0.5}[name]
            inside = np.broadcast_to(half, (image_size, image_size))
        else:
            raise ValueError
        if not all(map(math.isfinite, numbers)):
            raise ValueError
    except ValueError:
        raise UserError(f"unknown shape {text!r}: {_ADVICE}") from None
    if inside.all():
        raise UserError(f"{text} covers all of the picture: leave a part of it outside")
    if not inside.any():
        raise UserError(
            f"{text} covers no pixel of the picture, whose sides go from 0 to 1: move or enlarge it"
        )
    return inside.astype(int)


def read_map(path: epath.PathLike, image_size: int, grid: tuple[int, int]) -> Levels:
    """The map in an image file: its grey values, from dark to bright, are the levels.

    UserError: it cannot be read, or has neither the size of the model's images nor of its latent.
    """
    if not epath.Path(path).exists():
        raise UserError(f"there is no file {path}, and no such shape: {_ADVICE}")
    levels = image_files.read_levels(path)
    if levels.shape not in {(image_size, image_size), grid}:
        height, width = levels.shape
        raise UserError(
            f"{path} is {width} x {height} pixels: a mask has to be {image_size} x {image_size}, "
            f"as the images, or {grid[1]} x {grid[0]}, as their latent"
        )
    return levels


def named_map(text: str, image_size: int, grid: tuple[int, int]) -> Levels:
    """The map that `draw_shape` draws, or `read_map` reads; UserError as theirs."""
    if is_shape(text):
        return draw_shape(text, image_size)
    return read_map(text, image_size, grid)


def enlarged(
    cells: Shaped[np.ndarray, "rows columns"], shape: tuple[int, int]
) -> Shaped[np.ndarray, "height width"]:
    """What every pixel of a picture of this shape has of its cell."""
    scale = [side // count for side, count in zip(shape, cells.shape, strict=True)]
    return np.kron(cells, np.ones(scale, cells.dtype))


def stages_for(levels: Levels) -> int:
    """How many stages, from 0 on, it takes until every level has a cluster of its own."""
    return (len(np.unique(levels)) - 1).bit_length() + 1


def follows(
    structure: Int[np.ndarray, "L"], levels: Levels, grid: tuple[int, int], num_stages: int
) -> bool:
    """Whether no cluster of the last of the first stages holds pixels of two levels."""
    labels = granularity.labels_at(structure[None], num_stages - 1).reshape(grid)
    pairs = np.stack([enlarged(labels, levels.shape), levels])
    return len(np.unique(pairs.reshape(2, -1), axis=1).T) == len(np.unique(labels))


def structure_from_map(
    levels: Levels, grid: tuple[int, int], num_stages: int, strict: bool = False
) -> Int[np.ndarray, "L"]:
    """The structure whose first `num_stages` maps follow a map of levels.

    Cluster j is divided between two of its levels and its higher side becomes 2j + 1. A cluster
    of one level is divided by the distance to the boundary that its parent was divided at. So the
    labels of a mask with two levels fall from its inside to its outside.

    levels: whole numbers, of which only the order matters. The map's sides are multiples of those
      of the grid, the rows and columns of the positions.
    num_stages: 2..K + 1, the number of stages from 0 on; later bits of the structure are zero.
    strict: refuses a map that is not balanced and nested already.

    UserError also: the map has one level only, or more than the last given stage has clusters, or
    there are no so many stages.
    """
    last_stage = granularity.last_stage(grid[0] * grid[1])
    needed = stages_for(levels)
    values, levels = np.unique(levels, return_inverse=True)  # Keeps the shape.
    count = len(values)
    if count < 2:
        raise UserError("the map has one level only: it needs two or more, as black and white")
    if needed > last_stage + 1:
        raise UserError(
            f"the map has {count} levels, and the model's last stage has only {2**last_stage} "
            "clusters: use fewer levels, as a PNG with hard edges has"
        )
    if not 2 <= num_stages <= last_stage + 1:
        raise UserError(
            f"{num_stages} stages cannot be given by a map: choose 2 to {last_stage + 1} of the "
            f"model's {last_stage + 1} stages"
        )
    if needed > num_stages:
        raise UserError(
            f"the map has {count} levels, and stage {num_stages - 1} has only "
            f"{2 ** (num_stages - 1)} clusters: use fewer levels, or give {needed} stages"
        )
    above = [levels >= threshold for threshold in range(1, count)]
    share = np.stack([_by_position(mask.astype(float), grid) for mask in above])
    distance = np.stack([_by_position(_signed_distance(mask), grid) for mask in above])
    place = np.indices(grid).reshape(2, -1) + 0.5
    labels = np.zeros(len(share[0]), int)
    divided_at = {0: None}  # Index of the threshold at which each cluster's parent was divided.
    for stage in range(num_stages - 1):
        children, divided_at_next = np.zeros_like(labels), {}
        for cluster in range(2**stage):
            members = np.flatnonzero(labels == cluster)
            chosen = _most_even(share[:, members])
            if strict:
                where = f"cluster {cluster} of stage {stage}" if stage else "the picture"
                _refuse_unbalanced(None if chosen is None else share[chosen, members], where)
            chosen = divided_at[cluster] if chosen is None else chosen
            centre = (place * share[chosen]).sum(axis=1) / share[chosen].sum()
            from_centre = place[:, members] - centre[:, None]
            children[members] = 2 * cluster
            children[members[_innermost_half(distance[chosen, members], from_centre)]] += 1
            divided_at_next |= {2 * cluster: chosen, 2 * cluster + 1: chosen}
        labels, divided_at = children, divided_at_next
    return (labels << (last_stage - num_stages + 1)).astype(np.int32)


def _by_position(
    values: Float[np.ndarray, "height width"], grid: tuple[int, int]
) -> Float[np.ndarray, "L"]:
    """Mean over the pixels of each position."""
    rows, columns = (side // cells for side, cells in zip(values.shape, grid, strict=True))
    return reduce(values, "(h p) (w q) -> (h w)", "mean", p=rows, q=columns)


def _signed_distance(mask: np.ndarray) -> Float[np.ndarray, "height width"]:
    """Distance to the mask's boundary, positive inside."""
    # Not at the top: it takes half a second, and few jobs need it.
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(mask) - distance_transform_edt(~mask)


def _innermost_half(
    distance: Float[np.ndarray, "members"], from_centre: Float[np.ndarray, "2 members"]
) -> Int[np.ndarray, "half"]:
    """Which half of a cluster's positions lies innermost, by the signed distance to a boundary.

    Of equal ones those are taken that are nearest to the centre, and where these are equal too, as
    in a circle, every so-many-th around it: the rows of the grid would make a band of the circle.
    """
    y, x = np.round(from_centre, 6) + 0.0  # No -0.0, which has an angle of its own.
    keys = np.round([np.hypot(x, y), -distance], 6)
    order = np.lexsort([np.arctan2(y, x), *keys])
    half = len(order) // 2
    equal = (keys[:, order] == keys[:, order[half - 1], None]).all(axis=0)
    before, tied = np.argmax(equal), order[equal]
    spread = np.arange(half - before) * len(tied) // (half - before)
    return np.concatenate([order[:before], tied[spread]])


def _most_even(share: Float[np.ndarray, "thresholds members"]) -> int | None:
    """The threshold that divides a cluster's positions most evenly; None if none divides them."""
    mean = share.mean(axis=1)
    dividing = (mean > 0) & (mean < 1)
    if not dividing.any():
        return None
    return int(np.argmin(np.where(dividing, np.abs(mean - 0.5), np.inf)))


def _refuse_unbalanced(share: Float[np.ndarray, "members"] | None, where: str) -> None:
    """UserError unless a half of the positions is above what divides them, each wholly or not."""
    if share is None:
        found = f"{where} has one level only, and its halves are not given"
    elif not np.isclose(share.mean(), 0.5):
        found = f"{100 * share.mean():.3g}% of {where} is above the level that divides it, not 50%"
    elif not np.isin(share, (0, 1)).all():
        found = f"a boundary in {where} runs through the midst of positions"
    else:
        return
    raise UserError(
        f"the map is not balanced: {found}; without --strict it is balanced by the distance"
    )
