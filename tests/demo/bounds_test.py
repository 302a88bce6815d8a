"""What visitors send is brought within bounds, or refused in a sentence."""

import numpy as np
import pytest
from PIL import Image

from nvg_jax.demo import bounds
from nvg_jax.errors import UserError


def test_numbers_are_clamped():
    assert bounds.number(0.5, 0, 2, "x") == 0.5
    assert (bounds.number(-3, 0, 2, "x"), bounds.number(1e300, 0, 2, "x")) == (0, 2)
    assert (bounds.whole(3.6, 1, 8, "x"), bounds.whole(10**30, 1, 8, "x")) == (4, 8)
    assert [bounds.nearest_steps(steps) for steps in (-1, 3.1, 10, 99)] == [1, 4, 8, 25]


@pytest.mark.parametrize("value", [None, "7", float("nan"), float("inf"), [1], {}, True])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(UserError, match="the seed has to be a number from 0 to 9"):
        bounds.whole(value, 0, 9, "the seed")


def test_classes():
    assert bounds.classes(bounds.IN_TURN, 4, 3) == [0, 1, 2, 0]
    assert bounds.classes(bounds.NO_CLASS, 2, 3) == [None, None]
    assert bounds.classes("2", 2, 3) == [2, 2]
    for wrong in ("3", "-1", "dress", "", None, 10**9):
        with pytest.raises(UserError, match="there is no such class: choose 0 to 2"):
            bounds.classes(wrong, 2, 3)


def test_an_upload_is_the_square_in_its_middle(tmp_path):
    path = str(tmp_path / "wide.png")
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, 10:30] = 255
    Image.fromarray(picture).save(path)
    square = bounds.upload(path, 10)
    assert square.shape == (10, 10, 3) and square.min() > 220  # Filtered, at its edges.


def test_uploads_are_refused_by_name_and_not_by_path(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="^choose an image first$"):
        bounds.upload(None, 8)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(UserError, match="^cannot read text.png: it is no image"):
        bounds.upload(str(text), 8)
    monkeypatch.setattr(bounds, "MAX_BYTES", 5)
    with pytest.raises(UserError, match="^text.png is too large"):
        bounds.upload(str(text), 8)


def test_large_pictures_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = str(tmp_path / "large.png")
    Image.new("L", (400, 100)).save(path)
    assert bounds.upload(path, 8).shape == (8, 8, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 19_999)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(UserError, match="^large.png is too large: make it 0 million pixels"):
        bounds.upload(path, 8)
