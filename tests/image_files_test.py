"""Image files of all kinds are read as they are meant, or are one clear line."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from nvg_jax import image_files
from nvg_jax.errors import UserError

DISC = np.hypot(*(np.indices((16, 16)) - 7.5)) < 5
GREY = Image.fromarray(np.uint8(255 * DISC))
SIXTEEN_BITS = Image.fromarray(np.uint16(300 * DISC + 300))
WRONG_WAY_UP = Image.Exif()
WRONG_WAY_UP[0x112] = 3  # Orientation: to be turned by 180 degrees.


def _clear_around(grey):
    """A disc on nothing, whose hidden colour is white."""
    pixels = np.where(DISC[..., None], [grey, grey, grey, 255], [255, 255, 255, 0])
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("grey.png", GREY, {}),
        ("bit.png", GREY.convert("1"), {}),
        ("colour.bmp", GREY.convert("RGB"), {}),
        ("palette.gif", GREY.convert("P"), {}),
        ("opaque.png", GREY.convert("RGBA"), {}),
        ("print.tif", GREY.convert("CMYK"), {}),
        ("deep.png", SIXTEEN_BITS, {}),
        ("deeper.tif", Image.fromarray(np.int32(300_000 * DISC)), {}),
        ("real.tif", Image.fromarray(np.float32(0.5 * DISC)), {}),
        ("black on nothing.png", _clear_around(0), {}),
        ("white on nothing.png", _clear_around(255), {}),
        ("palette.png", GREY.convert("P"), {"transparency": bytes(range(256))}),
        ("animated.gif", GREY, {"save_all": True, "append_images": [GREY.rotate(90), GREY]}),
        ("pages.tif", GREY, {"save_all": True, "append_images": [GREY.rotate(90)]}),
    ],
)
def test_levels_of_all_modes(tmp_path, recwarn, name, image, options):
    image.save(tmp_path / name, **options)
    levels = image_files.read_levels(tmp_path / name)
    low, high = np.unique(levels)
    np.testing.assert_array_equal(levels == high, DISC)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "image", "inside", "outside"),
    [
        ("grey.png", GREY, 255, 0),
        ("print.tif", GREY.convert("CMYK"), 255, 0),
        ("deep.png", Image.fromarray(np.uint16(65535 * DISC)), 255, 0),
        ("nothing around.png", _clear_around(0), 0, 255),
    ],
)
def test_colours_of_all_modes(tmp_path, name, image, inside, outside):
    image.save(tmp_path / name)
    found = image_files.read_rgb(tmp_path / name)
    expected = np.where(DISC, inside, outside)[..., None].repeat(3, axis=-1)
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_a_camera_that_was_turned(tmp_path):
    left = Image.fromarray(np.uint8(255 * (np.indices((16, 16))[1] < 8)))
    left.save(tmp_path / "turned.png", exif=WRONG_WAY_UP)
    for read in (image_files.read_levels, image_files.read_rgb):
        found = np.asarray(read(tmp_path / "turned.png"))
        assert (found[:, 8:] == 255).all() and (found[:, :8] == 0).all()


def test_of_several_pictures_the_first_is_taken_and_that_is_said(tmp_path, caplog):
    GREY.save(tmp_path / "two.png", save_all=True, append_images=[GREY.rotate(90)])
    with caplog.at_level("INFO"):
        image_files.read_rgb(tmp_path / "two.png")
    assert caplog.messages == [f"{tmp_path}/two.png holds 2 pictures, of which the first is taken"]


def _png_of(width, height):
    """A PNG that says it is so large, with hardly anything in it."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
        b"IDAT": zlib.compress(bytes(100)),
    }
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture
def whole(tmp_path):
    GREY.save(tmp_path / "whole.png")
    return (tmp_path / "whole.png").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: b"", "it is no image, or damaged$"),
        (lambda whole: b"no image", "it is no image, or damaged$"),
        (lambda whole: whole[:20], "it is damaged or of an unknown kind, Truncated File Read$"),
        (lambda whole: whole[: len(whole) // 2], "image file is truncated"),
        (lambda whole: whole[:50] + b"?" + whole[51:], "broken"),
        (lambda whole: _png_of(9_000, 10_000), "truncated"),
        (lambda whole: _png_of(100_000, 100_000), "too large: make it 178 million pixels or fewer"),
        (lambda whole: b"P2 16 16 255\nx y z\n", "cannot read"),
    ],
)
def test_unreadable_files_are_one_line(tmp_path, recwarn, whole, content, message):
    path = tmp_path / "image.png"
    path.write_bytes(content(whole))
    for read in (image_files.read_levels, image_files.read_rgb):
        with pytest.raises(UserError, match=message) as error:
            read(path)
        assert str(path) in str(error.value) and len(str(error.value).splitlines()) == 1
    assert not recwarn.list


def test_other_mistakes_are_one_line(tmp_path):
    numbers = np.float32(DISC)
    numbers[0, 0] = np.nan
    Image.fromarray(numbers).save(tmp_path / "numbers.tif")
    with pytest.raises(UserError, match="numbers.tif has pixels that are no number: save it"):
        image_files.read_levels(tmp_path / "numbers.tif")
    with pytest.raises(UserError, match="numbers.tif has grey values of no known white"):
        image_files.read_rgb(tmp_path / "numbers.tif")
    with pytest.raises(UserError, match="Is a directory$"):
        image_files.read_rgb(tmp_path)
    with pytest.raises(UserError, match="^there is no file .*none.png$"):
        image_files.read_rgb(tmp_path / "none.png")
