"""What the user gives of samples: maps, shapes and references."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nvg_jax import granularity, jobs, pixels
from nvg_jax.data import pipeline
from nvg_jax.errors import UserError
from nvg_jax.generator.sampler import Given
from nvg_jax.jobs.given import given_stages, named_image


@pytest.fixture(scope="module")
def loaded():
    """The model of the finished training, read once."""
    return {}


@pytest.fixture
def model(trained, loaded):
    return loaded.setdefault("model", jobs.load_model(*trained))


def _sequences(config, model, given):
    batches = jobs.generate(
        model, jobs.sampling_settings(config), np.arange(7) % 10, 10, seed=0, given=given
    )
    return jax.tree.map(jnp.asarray, next(iter(batches))[0])


def test_samples_have_the_structure_of_a_shape(trained, model):
    config, _ = trained
    config.control.structure = "left"
    config.control.strict = True
    given = given_stages(config, model.tokenizer, model.tokenizer_variables)
    assert (given.structure_stages, given.content_stages) == (2, 0)
    sequence = _sequences(config, model, given)
    left = np.tile([1, 1, 0, 0], 4)
    for structure in granularity.labels_at(sequence.structure, 1):
        np.testing.assert_array_equal(structure, left)
    assert len(np.unique(sequence.tokens, axis=0)) == 7
    assert len(np.unique(granularity.labels_at(sequence.structure, 3), axis=0)) > 1


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (np.arange(64) % 8 < 4, "2 levels, from dark to bright, cover 50% and 50% of the picture, "
         "which it follows as they are"),
        (np.arange(64) < 45, "2 levels, from dark to bright, cover 29.7% and 70.3% of the picture, "
         "balanced to 2 parts of 50% each, as every stage halves"),
        (np.arange(64) // 22, "3 levels, from dark to bright, cover 34.4%, 34.4% and 31.2% of the "
         "picture, balanced to 4 parts of 25% each, as every stage halves"),
        (np.arange(64) // 7, "10 levels, from dark to bright, cover 1.56% to 10.9% of the picture "
         "each, balanced to 16 parts of 6.25% each, as every stage halves"),
    ],
)  # fmt: skip
def test_it_is_said_how_a_map_was_balanced(trained, model, tmp_path, caplog, levels, expected):
    """Whatever the grey values are: a black and white mask has 256, of which two occur."""
    config, _ = trained
    grey = np.uint8(levels.reshape(8, 8) * (255 // levels.max()))
    Image.fromarray(grey).save(tmp_path / "mask.png")
    config.control.structure = f"{tmp_path}/mask.png"
    with caplog.at_level("INFO"):
        given = given_stages(config, model.tokenizer, model.tokenizer_variables)
    stages = given.structure_stages
    start = f"{tmp_path}/mask.png gives the structure of the first {stages} stages: its "
    assert caplog.messages[0] == start + expected
    assert "orange (dark in a given map) or blue (bright)" in caplog.messages[1]


def test_samples_have_the_first_stages_of_a_reference(trained, model, tmp_path):
    config, _ = trained
    batch = next(iter(pipeline.evaluation_batches(config.data, "test[5:6]", 1)))
    path = str(tmp_path / "image.png")
    Image.fromarray(batch["image"][0]).save(path)
    config.control.stages = 3
    config.control.content = True
    for reference in ("test:5", path):
        config.control.reference = reference
        found = named_image(config.data, reference)
        np.testing.assert_array_equal(pixels.to_uint8(found), batch["image"][0])
    given = given_stages(config, model.tokenizer, model.tokenizer_variables)
    expected = jax.tree.map(jnp.asarray, given.sequence)
    sequence = _sequences(config, model, given)
    for stage in range(3):
        for labels in granularity.labels_at(sequence.structure, stage):
            np.testing.assert_array_equal(
                labels, granularity.labels_at(expected.structure, stage)[0]
            )
        for tokens in granularity.stage_tokens(sequence.tokens, stage):
            np.testing.assert_array_equal(
                tokens, granularity.stage_tokens(expected.tokens, stage)[0]
            )
    assert len(np.unique(granularity.stage_tokens(sequence.tokens, 3), axis=0)) > 1


def test_sequences_can_be_given_sample_by_sample(trained, model):
    config, _ = trained
    rng = np.random.default_rng(0)
    structure = rng.permuted(np.tile(np.arange(16, dtype=np.int32), (7, 1)), axis=1)
    tokens = rng.integers(0, 16, (7, 31), np.int32)
    reference = granularity.GranularitySequence(structure, tokens)
    sequence = _sequences(config, model, Given(reference, 5, 5))
    np.testing.assert_array_equal(sequence.structure, structure)
    np.testing.assert_array_equal(sequence.tokens, tokens)


def test_sample_shows_what_was_given(trained):
    config, workdir = trained
    config.control.structure = "circle:0.5,0.5,0.4"
    folder = jobs.sample(config, workdir)
    picture = np.asarray(Image.open(f"{folder}/given.png"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 3


def test_control_shows_reference_and_samples(trained):
    config, workdir = trained
    config.control.reference = "test:3"
    folder = jobs.control(config, workdir)
    picture = np.asarray(Image.open(f"{folder}/stages.png"))
    cell, gap = 96, 3
    left, top = picture.shape[1] - gap - cell, picture.shape[0] - gap - cell
    # With all stages kept, the sample is the reference's reconstruction.
    last_sample = picture[top : top + cell, left : left + cell]
    reconstruction = picture[36 : 36 + cell, left : left + cell]
    np.testing.assert_array_equal(last_sample, reconstruction)
    first = left - 5 * (cell + gap)
    assert (picture[top : top + cell, first : first + cell] != reconstruction).any()


def test_mistakes_are_one_clear_line(trained, model):
    config, workdir = trained

    def refused(message, **changes):
        changed = config.copy_and_resolve_references()
        changed.control.update(changes)
        with pytest.raises(UserError, match=message):
            given_stages(changed, model.tokenizer, model.tokenizer_variables)

    refused("exclude each other", structure="left", reference="test:1")
    refused("content needs a reference", structure="left", content=True)
    refused("there is no example test:360: test has 360", reference="test:360")
    refused("unknown split 'dev'", reference="dev:0")
    for name in ("nothing.png", "test:-1", "test:", "test+train:3", "test[:5]:3"):
        text = re.escape(f"there is no file {name}: name an image, or an example as test:0")
        refused(text, reference=name)
    refused("there is no file oval, and no such shape: choose circle", structure="oval")
    refused("choose 2 to 5 of the model's 5 stages", structure="left", stages=6)
    refused("3 stages of nothing", stages=3)
    refused("cannot read", reference=__file__)
    refused("choose 1 to 5 stages", reference="test:0", stages=6)
    refused("choose 1 to 5 stages", reference="test:0", stages=-1)
    refused("not balanced", structure="circle:0.5,0.5,0.2", strict=True)
    with pytest.raises(UserError, match="needs a reference image: .* as test:0"):
        jobs.control(config, workdir)
    config.control.structure = "left"
    with pytest.raises(UserError, match="config.control.structure is for --job=sample"):
        jobs.control(config, workdir)
