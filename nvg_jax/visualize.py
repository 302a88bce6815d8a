"""Pictures of images and structures: grids, structure maps, coarse-to-fine strips.

Every function but `save_png` is pure; images and pictures are uint8 arrays on the host.
"""

import math
from collections.abc import Sequence

import numpy as np
from einops import rearrange, repeat
from etils import epath
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from nvg_jax import files, granularity

Picture = UInt8[np.ndarray, "_ _ 3"]

_GRID_CELL, _STRIP_CELL = 64, 96  # pixels: smaller images are magnified to at least this width
_BACKGROUND = 255
_TEXT_COLOUR = (70, 70, 70)

# What to say where structure maps are shown.
MAP_COLOURS = (
    "every cluster has a colour: at stage 1 orange (dark in a given map) or blue (bright), later "
    "one next to its parent's"
)


def grid(
    images: UInt8[np.ndarray, "B height width 3"],
    columns: int | None = None,
    scale: int | None = None,
    padding: int = 2,
) -> Picture:
    """Images in raster order on white, `padding` pixels around each.

    `columns` defaults to the most square grid, `scale` (integer, nearest neighbour, so that every
    pixel the model drew stays visible) to the smallest that makes an image 64 pixels wide.
    """
    scale = math.ceil(_GRID_CELL / images.shape[2]) if scale is None else scale
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    empty = -len(images) % columns
    images = repeat(images, "n h w c -> n (h p) (w q) c", p=scale, q=scale)
    edges = ((0, empty), (padding, 0), (padding, 0), (0, 0))
    images = np.pad(images, edges, constant_values=_BACKGROUND)
    picture = rearrange(images, "(r c) h w d -> (r h) (c w) d", c=columns)
    return np.pad(picture, ((0, padding), (0, padding), (0, 0)), constant_values=_BACKGROUND)


def structure_picture(
    labels: Int[np.ndarray, "rows columns"], stage: int
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Colours the structure of one stage, labels in [0, 2^stage).

    At stage 1 label 0 is orange, 1 blue: `MAP_COLOURS` says so in words. The first three splits
    divide the colour circle into 2, 4, 8 hues, the later ones alternate
    between lightness and hue in ever smaller steps around the parent's colour, so that stages side
    by side read as one refinement. The only cluster of stage 0 is grey.
    """
    return _stage_colours(stage)[labels]


def strips(
    stage_images: UInt8[np.ndarray, "B stages height width 3"],
    structure: Int[np.ndarray, "B L"] | None,
    positions: tuple[int, int],
    captions: Sequence[str],
    originals: UInt8[np.ndarray, "B height width 3"] | None = None,
    stages: Sequence[int] | None = None,
) -> Picture:
    """Images from coarse to fine, one below the other, with a column for each of these stages, by
    default all.

    Each stage's decoded canvas stands above its map of the positions, at the same size, if there is
    a structure. The originals, if images were reconstructed, are a last column, set off by a gap.
    """
    rows = []
    stages = range(stage_images.shape[1]) if stages is None else stages
    for index, images in enumerate(stage_images):
        last = [] if originals is None else [originals[index]]
        rows.append([*images, *last])
        if structure is not None:
            rows.append(structure_maps(structure[index], positions, stages))
    captions = [*captions, *["original"] * (originals is not None)]
    return table(rows, captions, group=len(rows) // len(stage_images), apart=len(stages))


def grey(shares: Shaped[np.ndarray, "height width"]) -> Picture:
    """A mask, or shares from 0 to 1, from black to white."""
    return np.repeat(np.uint8(255 * shares)[..., None], 3, axis=-1)


def structure_strip(
    structure: Int[np.ndarray, "L"], positions: tuple[int, int], stages: int
) -> Picture:
    """The maps of the first stages of one structure, side by side."""
    maps = structure_maps(structure, positions, range(stages))
    return table([maps], [f"stage {stage}" for stage in range(stages)])


def structure_maps(
    structure: Int[np.ndarray, "L"], positions: tuple[int, int], stages: Sequence[int]
) -> list[Picture]:
    """The maps of these stages of one structure."""
    every = structure[None]
    return [
        structure_picture(granularity.labels_at(every, stage).reshape(positions), stage)
        for stage in stages
    ]


def table(
    rows: Sequence[Sequence[Picture]],
    columns: Sequence[str],
    names: Sequence[str] | None = None,
    group: int = 1,
    apart: int | None = None,
) -> Picture:
    """Pictures in rows, which may end early, with captions of columns and, left, names of rows.

    The first is magnified (integer, nearest neighbour) to at least 96 pixels, and all others are
    brought to its size. `group` rows stand closer together, and the column `apart` stands apart
    from those before it.
    """
    height, width = rows[0][0].shape[:2]
    scale = math.ceil(_STRIP_CELL / width)
    height, width = height * scale, width * scale
    gap = max(2, width // 32)
    font = ImageFont.load_default(size=width // 8)
    caption_height = 3 * int(font.size)
    margin = gap
    if names:
        lines = [line for name in names for line in name.splitlines()]
        margin += math.ceil(max(map(font.getlength, lines))) + 2 * gap
    lefts = [margin + column * (width + gap) for column in range(len(columns))]
    if apart is not None:
        lefts[apart:] = [left + 3 * gap for left in lefts[apart:]]
    of_group = group * (height + gap) + 3 * gap
    tops = [
        caption_height + row // group * of_group + row % group * (height + gap)
        for row in range(len(rows))
    ]
    size = (lefts[-1] + width + gap, tops[-1] + height + gap)
    picture = Image.new("RGB", size, (_BACKGROUND,) * 3)
    draw = ImageDraw.Draw(picture)

    def caption(x: float, y: float, text: str) -> None:
        draw.text((x, y), text, _TEXT_COLOUR, font, anchor="mm", align="center", spacing=2)

    for left, text in zip(lefts, columns, strict=True):
        caption(left + width / 2, caption_height / 2, text)
    for row, top in enumerate(tops):
        if names:
            caption((margin - gap) / 2, top + height / 2, names[row])
        for left, pixels in zip(lefts, rows[row], strict=False):
            cell = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
            picture.paste(cell, (left, top))
    return np.asarray(picture)


def save_png(path: epath.PathLike, picture: Picture) -> None:
    """Writes a picture, as `files.replacing` does."""
    with files.replacing(path) as file:
        Image.fromarray(picture).save(file, "PNG")


def _stage_colours(stage: int) -> UInt8[np.ndarray, "clusters 3"]:
    clusters = np.arange(2**stage)
    hue, lightness = np.full(2**stage, np.radians(150)), np.full(2**stage, 0.72)
    hue_step, lightness_step = np.pi / 2, 0.08
    for split in range(1, stage + 1):
        side = 2 * (clusters >> (stage - split) & 1) - 1
        if split <= 3 or split % 2:
            hue = hue + side * hue_step
            hue_step /= 2
        else:
            lightness = lightness + side * lightness_step
            lightness_step /= 2
    chroma = 0.13 if stage else 0.0
    return _oklch_to_srgb(lightness, chroma, hue)


def _oklch_to_srgb(
    lightness: Float[np.ndarray, "clusters"], chroma: float, hue: Float[np.ndarray, "clusters"]
) -> UInt8[np.ndarray, "clusters 3"]:
    """Oklab in polar form (B. Ottosson, 2020) to sRGB: equal steps look about equally large."""
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    cones = lab @ np.array(
        [[1, 1, 1], [0.3963377774, -0.1055613458, -0.0894841775],
         [0.2158037573, -0.0638541728, -1.2914855480]]
    )  # fmt: skip
    linear = cones**3 @ np.array(
        [[4.0767416621, -1.2684380046, -0.0041960863],
         [-3.3077115913, 2.6097574011, -0.7034186147],
         [0.2309699292, -0.3413193965, 1.7076147010]]
    )  # fmt: skip
    linear = np.clip(linear, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * srgb).astype(np.uint8)
