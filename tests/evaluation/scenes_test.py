"""Structure maps and guided samples against masks, with a tiny model of random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import nvg_shapes
from nvg_jax import jobs, pixels, sharding
from nvg_jax.data import pipeline, shapes
from nvg_jax.errors import UserError
from nvg_jax.evaluation import metric, segmentation, streams
from nvg_jax.generator.model import build_generator
from nvg_jax.jobs import evaluation
from nvg_jax.jobs.model import Model
from nvg_jax.tokenizer.model import build_tokenizer


@pytest.fixture
def config(shapes_dir):
    config = nvg_shapes.get_config()
    config.data.data_dir = shapes_dir
    config.data.image_size = 16
    model = config.tokenizer.model
    model.multipliers, model.latent_channels, model.vocab_size = (1, 1, 1), 4, 16
    model = config.generator.model
    model.depth, model.content_width, model.structure_width = 1, 32, 32
    model.content_heads = model.structure_heads = 1
    config.sampling.flow_steps = 2
    config.sampling.batch_size = 6
    config.evaluation.batch_size = 8
    config.evaluation.guided.num_samples = 12
    config.evaluation.guided.stages = 3
    config.evaluation.metrics = ("guided_iou", "structure_miou")
    return config


@pytest.fixture(autouse=True)
def model(config, random_variables, monkeypatch):
    """The model that every job loads."""
    tokenizer, generator = build_tokenizer(config), build_generator(config)
    model = Model(
        tokenizer,
        random_variables(tokenizer.init_variables),
        generator,
        random_variables(generator.init_variables),
        sharding.create_mesh(),
        {"tokenizer": "random", "generator": "random"},
    )
    monkeypatch.setattr(evaluation, "load_model", lambda *args, **options: model)
    return model


@pytest.fixture
def scenes(config):
    batches = pipeline.evaluation_batches(config.data, "test", 20, masks=True)
    batch = jax.tree.map(jnp.asarray, next(iter(batches)))
    return batch | {"image": pixels.from_uint8(batch["image"])}


def test_structure_and_samples_are_compared_with_masks(config, model, scenes, tmp_path):
    config.frozen.random = True
    config.evaluation.metrics = ("guided_iou", "structure_miou", "ssim", "lpips")
    found = jobs.evaluate(config, str(tmp_path))
    assert found["lpips"] > 0 and -1 <= found["ssim"] <= 1

    @jax.jit
    def reconstruct(images):
        tokenizer = model.tokenizer.bind(model.tokenizer_variables)
        sequence, canvases = tokenizer.tokenize(images)
        return sequence.structure, tokenizer.decode(canvases[:, -1])

    structure, decoded = reconstruct(scenes["image"])
    masks = np.asarray(scenes["segmentation_mask"] == 1)
    expected = segmentation.structure_miou(structure, masks, (4, 4)).mean(axis=0)
    np.testing.assert_allclose(found["structure_miou"], expected)
    random = np.array(found["structure_miou_random"])
    # Where all clusters are one or single positions, which is which makes no difference.
    np.testing.assert_allclose(random[[0, -1]], expected[[0, -1]])
    assert (random[1:-1] != expected[1:-1]).all()

    assert all(
        0 <= found[f"guided_iou{name}"] <= 1 for name in ("", "_image", "_free", "_reconstruction")
    )
    objects = shapes.segment(pixels.to_uint8(np.asarray(decoded)), np.asarray(scenes["label"]))
    expected = segmentation.iou(masks, objects)[:12].mean()
    np.testing.assert_allclose(found["guided_iou_reconstruction"], expected)
    picture = np.asarray(Image.open(tmp_path / "evaluation" / "guided.png"))
    assert picture.shape[0] > 8 * 96 and picture.shape[1] > 10 * 96


def _painted(given, labels, size):
    """What a perfect generator would paint: the class's colour where the map says inside."""
    inside = np.asarray(given.sequence.structure).reshape(-1, 4, 4) >= 8
    inside = inside.repeat(size // 4, axis=1).repeat(size // 4, axis=2)[..., None]
    colours = np.array(list(shapes.PALETTE.values()), np.uint8)[labels % 4]
    return np.where(inside, colours[:, None, None], np.uint8(128))


def test_a_perfect_generator_follows_its_guide(config, scenes, tmp_path, monkeypatch):
    """The left half as the mask of every scene; the generator paints exactly what it is given."""

    def generate(model, settings, class_ids, batch_size, seed, given, quiet, kept):
        size = config.data.image_size
        if given is None:
            yield None, np.full((len(class_ids), size, size, 3), 128, np.uint8)
        else:
            yield given.sequence, _painted(given, class_ids, size)

    half = np.zeros((20, 16, 16), np.uint8)
    half[:, :, :8] = 1
    batches = [scenes | {"segmentation_mask": jnp.asarray(half)}]
    monkeypatch.setattr(evaluation, "generate", generate)
    monkeypatch.setattr(streams, "of_split", lambda *args: batches)
    config.evaluation.metrics = ("guided_iou",)
    found = jobs.evaluate(config, str(tmp_path))
    assert found["guided_iou"] == 1 and found["guided_iou_free"] == 0
    assert 0 < found["guided_iou_image"] < 1


def test_masks_of_several_objects_are_refused(config, scenes, tmp_path, monkeypatch):
    batches = [scenes | {"segmentation_mask": 2 * scenes["segmentation_mask"]}]
    monkeypatch.setattr(streams, "of_split", lambda *args: batches)
    with pytest.raises(UserError, match="have 3 segments: structure_miou is defined for two"):
        jobs.evaluate(config, str(tmp_path))


def test_segments_of_crowds_are_told_by_structure_and_superpixels(
    config, model, crowds_dir, tmp_path
):
    config.data.dataset, config.data.data_dir = "crowds", crowds_dir
    config.evaluation.metrics = ("segments",)
    found = jobs.evaluate(config, str(tmp_path))
    (batch,) = pipeline.evaluation_batches(config.data, "test", 20, masks=True)
    masks = batch["segmentation_mask"]
    assert masks.max() > 1
    tokenizer = model.tokenizer.bind(model.tokenizer_variables)
    images = pixels.from_uint8(jnp.asarray(batch["image"]))
    structure = np.asarray(tokenizer.tokenize(images)[0].structure)
    for stage in range(5):
        labels = (structure >> (4 - stage)).reshape(-1, 4, 4).repeat(4, axis=1).repeat(4, axis=2)
        each = [segmentation.segments(*x) for x in zip(labels, masks, strict=True)]
        for field, expected in zip(
            ("accuracy", "miou", "boundary_recall"), np.mean(each, 0), strict=True
        ):
            np.testing.assert_allclose(found[f"segments_{field}"][stage], expected)
    for name in ("random", "spatial", "slic"):
        accuracy = found[f"segments_accuracy_{name}"]
        assert accuracy[0] == found["segments_accuracy"][0] and 0.5 < accuracy[-1] <= 1
    assert found["segments_accuracy_slic"][4] > found["segments_accuracy_random"][4]


def test_a_stream_ends_when_all_have_seen_enough(config, scenes):
    class Few(metric.Metric):
        streams = ("split",)

        def look(self, seen):
            return seen.labels

    few, fewer = Few(config, 0), Few(config, 0)
    few.limit, fewer.limit = 23, 2
    rounds = []
    batches = (rounds.append(number) or scenes for number in range(5))
    streams.measure([few, fewer], "split", batches, build_tokenizer(config), {}, {})
    assert rounds == [0, 1]
    assert [len(np.concatenate(x.parts)) for x in (few, fewer)] == [23, 2]


def test_edits_are_measured_where_they_keep_and_where_they_make_anew(
    config, model, scenes, tmp_path, monkeypatch
):
    """A generator that paints all grey: what it should have kept differs as the images do."""
    asked = []

    def generate(model, settings, class_ids, batch_size, seed, given, quiet, kept):
        asked.append((class_ids, kept))
        yield None, np.full((len(class_ids), 16, 16, 3), 128, np.uint8)

    monkeypatch.setattr(evaluation, "generate", generate)
    config.frozen.random = True
    config.edit.mask = "left"
    config.evaluation.metrics = ("edited",)
    config.evaluation.edited.num_samples = 12
    config.evaluation.edited.metrics = ("classifier_agreement",)
    config.evaluation.classifier.update({"epochs": 1.0, "batch_size": 10})
    found = jobs.evaluate(config, str(tmp_path))
    assert {"edited_classifier_agreement", "edited_other_classifier_agreement"} < set(found)
    labels = np.asarray(scenes["label"])[:12]
    (own, kept), (others, _) = asked
    np.testing.assert_array_equal(own, labels)
    assert (others != labels).all() and (others < 16).all() and len(set(others - labels)) > 2

    tokenizer = model.tokenizer.bind(model.tokenizer_variables)
    sequence, canvases = tokenizer.tokenize(scenes["image"][:12])
    kept_structure = np.asarray(kept.structure).reshape(12, 4, 4)
    assert (kept_structure[:, :, :2] == -1).all()
    structure = np.asarray(sequence.structure).reshape(12, 4, 4)
    np.testing.assert_array_equal(kept_structure[:, :, 2:], structure[:, :, 2:])
    decoded = pixels.to_uint8(np.asarray(tokenizer.decode(canvases[:, -1])))
    error = decoded[:, :, 8:].astype(float) - 128
    np.testing.assert_allclose(
        found["edited_psnr"], 20 * np.log10(255 / np.sqrt((error**2).mean())), rtol=1e-3
    )
    picture = np.asarray(Image.open(tmp_path / "evaluation" / "edited.png"))
    assert picture.shape[0] > 4 * 96 and picture.shape[1] > 10 * 96

    config.edit.mask = ""
    with pytest.raises(UserError, match="set --config.edit.mask"):
        jobs.evaluate(config, str(tmp_path))
    config.edit.mask = "oval"
    with pytest.raises(UserError, match="there is no file oval, and no such shape"):
        metric.choose(config, None)  # Before anything is measured.
