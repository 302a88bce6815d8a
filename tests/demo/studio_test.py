"""What the page can have a model make."""

import numpy as np
import pytest
from PIL import Image

from nvg_jax import jobs, visualize
from nvg_jax.demo import bounds, drawing
from nvg_jax.demo.studio import Studio, Wishes
from nvg_jax.errors import UserError
from nvg_jax.evaluation.archive import load_samples

SIZE, STAGES = 8, 5
WISHES = Wishes("all in turn", seed=3, count=3, strength=1, temperature=0.8, steps=2)


@pytest.fixture
def studio(tiny_weights):
    return Studio(*tiny_weights, most=4)


@pytest.fixture
def image(studio):
    return last(studio.samples(WISHES)).images[0]


def last(every):
    *_, made = every
    return made


def test_samples_grow_stage_by_stage_to_those_of_the_job(studio):
    every = list(studio.samples(WISHES))
    assert [made.stage for made in every] == list(range(STAGES))
    assert [made.is_last for made in every] == [False] * (STAGES - 1) + [True]
    assert every[0].words == "Stage 0 of 4: 1 token" and every[-1].words == "3 made in 5 stages."
    for made in every:
        assert made.images.shape == (3, SIZE, SIZE, 3) and len(made.history) == made.stage + 1
        assert made.picture().shape == made.maps().shape
    labels = every[2].sequence.structure >> 2
    np.testing.assert_array_equal(labels, every[-1].sequence.structure >> 2)
    assert len(np.unique(every[1].maps().reshape(-1, 3), axis=0)) == 3  # White around two colours.

    settings = jobs.sampling_settings(studio.config)
    ((sequence, images),) = jobs.generate(studio.model, settings, [0, 1, 2], 4, seed=3)
    np.testing.assert_array_equal(every[-1].sequence.structure, sequence.structure)
    np.testing.assert_array_equal(every[-1].sequence.tokens, sequence.tokens)
    assert np.abs(every[-1].images.astype(int) - images).max() <= 1


def test_wishes_are_kept_within_bounds(studio):
    def settings(**changes):
        return studio._settings(WISHES._replace(**changes))

    plain, config = settings(), studio.config.sampling
    assert plain.content_guidance == config.content_guidance and plain.flow_steps == 2
    assert settings(strength=0).structure_guidance == (1, 1)
    assert settings(strength=99) == settings(strength=bounds.MAX_STRENGTH)
    assert settings(temperature=-1).temperature == 0
    assert settings(steps=10**9).flow_steps == 25
    assert len(last(studio.samples(WISHES._replace(count=10**9, seed=-5))).images) == 4
    for wrong in ({"choice": "12"}, {"seed": None}, {"temperature": "hot"}, {"steps": [1]}):
        with pytest.raises(UserError):
            next(studio.samples(WISHES._replace(**wrong)))


def test_all_that_is_made_can_be_saved(studio, tmp_path):
    made = last(studio.samples(WISHES))
    paths = made.save(tmp_path / "new")
    names = ["samples.npz", "samples.png", "sequences.npz", "stages.png"]
    assert paths == [str(tmp_path / "new" / name) for name in names]
    samples = load_samples(paths[0], SIZE)
    np.testing.assert_array_equal(samples.images, made.images)
    np.testing.assert_array_equal(samples.class_ids, [0, 1, 2])
    with np.load(paths[2], allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["tokens"], made.sequence.tokens)
        np.testing.assert_array_equal(arrays["structure"], made.sequence.structure)
    assert np.asarray(Image.open(paths[3])).shape == made.strip().shape
    without = last(studio.samples(WISHES._replace(choice="none"))).save(tmp_path / "other")
    assert load_samples(without[0], SIZE).class_ids is None


def test_samples_follow_a_painted_map(studio):
    guide = studio.guide(drawing.example("small spot", 256), 2)
    assert "levels, from dark to bright, cover 9" in guide.words and "balanced to 2" in guide.words
    assert "of the picture changed its level." in guide.words
    made = last(studio.samples(WISHES, given=guide.given))
    wanted = np.tile(guide.given.sequence.structure >> 3, (3, 1))
    np.testing.assert_array_equal(made.sequence.structure >> 3, wanted)
    quarters = studio.guide(drawing.example("stairs (4)", 256), 4)
    assert "which it follows as they are. 0% of the" in quarters.words
    assert quarters.given.structure_stages == 3
    with pytest.raises(UserError, match="one level only"):
        studio.guide(np.zeros((256, 256, 3), np.uint8), 2)


def test_an_image_is_taken_apart_and_drawn_anew(studio, image, tmp_path):
    path = str(tmp_path / "image.png")
    visualize.save_png(path, image)
    np.testing.assert_array_equal(studio.square(path), image)
    assert studio.taken_apart(image).shape[1] > STAGES * 96
    whole = studio.kept_stages(image, STAGES, STAGES)
    every = last(studio.samples(WISHES, given=whole))
    assert (every.images == every.images[0]).all()
    some = studio.kept_stages(image, 3, 99)
    assert some[1:] == (3, 3)
    assert studio.kept_stages(image, 0, 2)[1:] == (0, 1)
    made = last(studio.samples(WISHES, given=some))
    np.testing.assert_array_equal(made.sequence.structure >> 2, every.sequence.structure >> 2)
    np.testing.assert_array_equal(made.sequence.tokens[:, :7], every.sequence.tokens[:, :7])


def test_what_is_not_brushed_over_is_kept(studio, image):
    layer = np.zeros((256, 256, 4), np.uint8)
    layer[:, :128, 3] = 255
    every = list(studio.variants(image, [layer], WISHES))
    assert len(every) == STAGES and len(every[-1].history) == STAGES
    for made in every:
        kept = np.tile(image[:, 5:], (3, 1, 1, 1))
        np.testing.assert_array_equal(made.images[:, :, 5:], kept)
    assert len(np.unique(every[-1].images[:, :, :4], axis=0)) == 3
    with pytest.raises(UserError, match="your brush leaves nothing to keep"):
        next(studio.variants(image, [np.full_like(layer, 255)], WISHES))
