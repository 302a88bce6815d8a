"""Images of which a part is made anew."""

import json

import numpy as np
import pytest
from PIL import Image

from nvg_jax import editing, jobs, pixels
from nvg_jax.errors import UserError
from nvg_jax.evaluation.archive import load_samples
from nvg_jax.jobs.given import named_image


def _edit(trained, **changes):
    config, workdir = trained
    config.edit.update({"image": "test:3", "mask": "left", "num_samples": 11} | changes)
    folder = jobs.edit(config, workdir)
    original = pixels.to_uint8(named_image(config.data, config.edit.image))
    return folder, original, load_samples(folder / "samples.npz", 8)


def test_a_part_is_made_anew_and_the_rest_are_the_images_pixels(trained):
    folder, original, (images, class_ids) = _edit(trained)
    assert images.shape == (11, 8, 8, 3) and class_ids is None
    # A position has two pixels, and the second from the edge on are the image's own.
    np.testing.assert_array_equal(images[:, :, 5:], np.tile(original[:, 5:], (11, 1, 1, 1)))
    assert len(np.unique(images[:, :, :4], axis=0)) == 11
    assert {path.name for path in folder.iterdir()} == {
        "samples.npz",
        "edited.png",
        "request.json",
    }
    request = json.loads((folder / "request.json").read_text())
    assert request["job"] == "edit" and request["edit"]["mask"] == "left"
    width = np.asarray(Image.open(folder / "edited.png")).shape[1]
    assert width == 10 * (96 + 3) + 3  # Image, mask and eight variants.


def test_the_rest_can_be_made_anew_and_a_class_asked_for(trained):
    _, original, (images, class_ids) = _edit(trained, invert=True, class_id=7, num_samples=3)
    np.testing.assert_array_equal(images[:, :, :3], np.tile(original[:, :3], (3, 1, 1, 1)))
    assert len(np.unique(images[:, :, 4:], axis=0)) == 3
    np.testing.assert_array_equal(class_ids, [7, 7, 7])
    other = _edit(trained, invert=True, class_id=2, num_samples=3)[2].images
    assert (other != images).any()


def test_a_mask_is_bright_where_it_is_made_anew(trained, tmp_path):
    config, _ = trained
    config.edit.mask = str(tmp_path / "mask.png")
    grey = np.full((8, 8), 20, np.uint8)
    grey[3:5, 2], grey[0, 0] = 200, 90
    Image.fromarray(grey).save(config.edit.mask)
    part, free = editing.edited_part(config, (4, 4))
    np.testing.assert_array_equal(part, grey == 200)
    np.testing.assert_array_equal(np.flatnonzero(free), [5, 9])
    Image.fromarray(grey[:4, :4]).save(config.edit.mask)  # As large as the latent.
    np.testing.assert_array_equal(
        editing.edited_part(config, (4, 4))[0], np.kron(grey[:4, :4] == 200, np.ones((2, 2)))
    )


def test_mistakes_are_one_clear_line(trained, tmp_path):
    config, workdir = trained

    def refused(message, **changes):
        config.edit.update({"image": "test:3", "mask": "left", "class_id": -1} | changes)
        with pytest.raises(UserError, match=message):
            jobs.edit(config, workdir)

    def picture(levels):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
        Image.fromarray(np.uint8(levels)).save(path)
        return str(path)

    refused("needs an image and a mask: set --config.edit.image", image="")
    refused("needs an image and a mask: set --config.edit.mask", mask="")
    refused("cannot read .*: it is no image", image=__file__)
    refused("there is no example test:360", image="test:360")
    refused("there is no file oval, and no such shape", mask="oval")
    refused("covers all of the picture: leave a part", mask="rect:0,0,1,1")
    refused("is 7 x 8 pixels: a mask has to be 8 x 8", mask=picture(np.eye(8, 7)))
    refused("has one level only: paint white", mask=picture(np.full((8, 8), 255)))
    refused(
        "leaves nothing to keep: each of the 4 x 4 positions", mask=picture(np.eye(8)[::-1] < 1)
    )
    for class_id in (-2, 10):
        refused(f"edit.class_id={class_id}: it has to be", class_id=class_id)
    for name in ("structure", "reference"):
        config.control.update({"structure": "", "reference": "", name: "test:1"})
        refused("leave config.control.structure and config.control.reference empty")
