"""The jobs from nothing to pictures on the real digits, with tiny models."""

import contextlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from nvg_jax import jobs
from nvg_jax.data import pipeline
from nvg_jax.errors import UserError
from nvg_jax.models.build import build_tokenizer
from nvg_jax.training import loop
from nvg_jax.training.loop import Preempted


@pytest.fixture
def trained(tiny_config, tmp_path_factory):
    """The config and workdir of a finished training, made once."""
    workdir = tmp_path_factory.getbasetemp() / "trained"
    if not workdir.exists():
        jobs.train(tiny_config, str(workdir))
    return tiny_config, str(workdir)


def test_training_ends_with_checkpoints_summaries_and_samples(trained):
    _, workdir = trained
    root = epath.Path(workdir)
    for name in ("tokenizer", "generator"):
        assert (root / name / "checkpoints" / "6").exists()
        assert list((root / name).glob("events.out.tfevents*"))
        assert list((root / name / "pictures").glob("*_00000006.png"))
    assert json.loads((root / "config.json").read_text())["data"]["dataset"] == "digits"
    with np.load(root / "samples" / "samples.npz", allow_pickle=False) as samples:
        assert samples["arr_0"].shape == (20, 8, 8, 3) and samples["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(samples["arr_1"], np.arange(20) % 10)
    for picture in ("grid", "strips"):
        assert np.asarray(Image.open(root / "samples" / f"{picture}.png")).std() > 0


def test_finished_training_is_not_repeated(trained, caplog):
    config, workdir = trained
    before = epath.Path(workdir, "generator", "checkpoints", "6").stat().mtime
    jobs.train(config, workdir)
    assert epath.Path(workdir, "generator", "checkpoints", "6").stat().mtime == before


def test_longer_training_goes_on_from_the_last_checkpoint(trained, tmp_path):
    config, workdir = trained
    shutil.copytree(workdir, tmp_path / "longer")
    config.generator.training.epochs = 8 / 22
    jobs.train(config, str(tmp_path / "longer"))
    steps = [path.name for path in (tmp_path / "longer" / "generator" / "checkpoints").iterdir()]
    assert "8" in steps and "6" in steps


def test_canvas_scales_are_measured_on_the_training_data(trained):
    config, workdir = trained
    tokenizer = build_tokenizer(config)
    variables = jobs.load_model(config, workdir).tokenizer_variables
    images = next(pipeline.train_iterator(config.data, batch_size=512, seed=7))["image"]
    _, canvases = tokenizer.apply(variables, jnp.asarray(images), method="tokenize")
    expected = 1 / np.asarray(canvases).std(axis=(0, 2, 3))[1:]
    scales = np.asarray(variables["stats"]["quantizer"]["canvas_scales"])
    assert scales[0] == 1.0
    np.testing.assert_allclose(scales[1:], expected, rtol=0.2)


def test_evaluation_reports_and_stores_its_numbers(trained, capsys):
    config, workdir = trained
    results = jobs.evaluate(config, workdir)
    assert results == json.loads(epath.Path(workdir, "evaluation.json").read_text())
    assert 0 < results["psnr"] < 60 and 0 < results["codebook_usage"] <= 1
    assert 0 <= results["class_agreement"] <= 1 and results["diversity"] > 0
    assert len(results["codebook_usage_by_stage"]) == 5
    assert f"{results['psnr']:.3f}" in capsys.readouterr().out


def test_reconstruct_writes_strips(trained):
    config, workdir = trained
    jobs.reconstruct(config, workdir)
    assert Image.open(epath.Path(workdir, "reconstructions", "strips.png")).width > 300


def test_exported_weights_serve_every_job(trained, tmp_path):
    config, workdir = trained
    jobs.export(config, workdir)
    jobs.sample(config, workdir)
    other = str(tmp_path / "other")
    config.tokenizer.checkpoint = f"{workdir}/export/tokenizer"
    config.generator.checkpoint = f"{workdir}/export/generator"
    jobs.sample(config, other)
    jobs.reconstruct(config, other)
    for name in ("arr_0", "arr_1"):
        ours, theirs = (np.load(f"{d}/samples/samples.npz")[name] for d in (workdir, other))
        np.testing.assert_array_equal(ours, theirs)


def test_training_starts_from_given_weights(trained, tmp_path):
    config, workdir = trained
    if not epath.Path(workdir, "export").exists():
        jobs.export(config, workdir)
    config.tokenizer.checkpoint = f"{workdir}/export/tokenizer"
    config.generator.checkpoint = f"{workdir}/export/generator"
    config.generator.training.epochs = 1 / 22
    config.generator.training.learning_rate = 0.0
    jobs.train(config, str(tmp_path))
    config.generator.checkpoint = ""
    tuned = jobs.load_model(config, str(tmp_path)).generator_variables
    given = jobs.load_model(config, workdir).generator_variables
    jax.tree.map(np.testing.assert_array_equal, tuned, given)
    assert not (tmp_path / "tokenizer").exists()


def test_a_sample_does_not_depend_on_the_batch_size(trained):
    config, workdir = trained
    model, settings = jobs.load_model(config, workdir), jobs.sampling_settings(config)
    class_ids = jobs.requested_classes(config, 7)

    def images(batch_size):
        batches = jobs.generate(model, settings, class_ids, batch_size, seed=3)
        return np.concatenate([batch for _, batch in batches])

    assert len(images(4)) == 7
    np.testing.assert_array_equal(images(4), images(7))


def test_stopping_saves_and_says_how_to_go_on(tiny_config, tmp_path, monkeypatch):
    answers = iter([False, False, True])
    stop = contextlib.nullcontext(lambda: next(answers, True))
    monkeypatch.setattr(loop, "stop_signal", lambda: stop)
    with pytest.raises(Preempted, match="saved step . of 6 .* run the same command again"):
        jobs.train(tiny_config, str(tmp_path))
    steps = [path.name for path in (tmp_path / "tokenizer" / "checkpoints").iterdir()]
    assert steps and all(int(step) < 6 for step in steps)


def test_a_diverging_loss_stops_and_keeps_the_last_checkpoint(tiny_config, tmp_path):
    tiny_config.tokenizer.training.epochs = 4 / 22
    tiny_config.tokenizer.training.warmup_steps = 0
    tiny_config.tokenizer.training.schedule = "linear"
    tiny_config.tokenizer.training.decay_start = 1.0
    tiny_config.tokenizer.training.checkpoint_every = 1
    tiny_config.tokenizer.training.learning_rate = float("inf")
    with pytest.raises(UserError, match="tokenizer is nan at step 2: .*step 1 is kept"):
        jobs.train(tiny_config, str(tmp_path))


def test_another_architecture_in_the_workdir_is_named(trained):
    config, workdir = trained
    config.tokenizer.model.vocab_size = 32
    before = epath.Path(workdir, "config.json").read_text()
    with pytest.raises(UserError, match="codebook 16.*codebook 32|codebook 32.*codebook 16"):
        jobs.train(config, workdir)
    assert epath.Path(workdir, "config.json").read_text() == before


def test_bad_requests_are_one_clear_line(trained):
    config, workdir = trained
    config.sampling.classes = (3, 10)
    with pytest.raises(UserError, match=r"class 10 .* outside 0\.\.9"):
        jobs.sample(config, workdir)


def test_bad_requests_are_noticed_before_training(tiny_config, tmp_path):
    tiny_config.sampling.classes = (-1,)
    with pytest.raises(UserError, match="class -1"):
        jobs.train(tiny_config, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_positions_that_are_not_a_power_of_two(tiny_config, tmp_path):
    tiny_config.data.image_size = 12
    with pytest.raises(UserError, match="36 latent positions are not a power of two"):
        jobs.train(tiny_config, str(tmp_path))


def test_an_image_size_that_does_not_fit_the_downsampling(tiny_config, tmp_path):
    tiny_config.data.image_size = 9
    with pytest.raises(UserError, match="image_size=9 is not a multiple of 2"):
        jobs.train(tiny_config, str(tmp_path))


def test_sampling_without_a_checkpoint(tiny_config, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        jobs.sample(tiny_config, str(tmp_path))


def test_dataset_that_is_not_prepared(tiny_config, tmp_path):
    tiny_config.data.data_dir = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="python -m nvg_jax.data.prepare digits"):
        jobs.train(tiny_config, str(tmp_path))
