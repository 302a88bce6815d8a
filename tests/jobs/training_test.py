"""The job `train` from nothing to pictures on the real digits, with tiny models."""

import contextlib
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from nvg_jax import jobs, lock, pixels
from nvg_jax.data import pipeline
from nvg_jax.data.prepare import prepare
from nvg_jax.data.stream import Order
from nvg_jax.errors import Preempted, UserError
from nvg_jax.tokenizer.model import Tokenizer, build_tokenizer
from nvg_jax.training import loop


def test_training_ends_with_checkpoints_summaries_and_samples(trained):
    _, workdir = trained
    root = epath.Path(workdir)
    for name in ("tokenizer", "generator"):
        assert (root / name / "checkpoints" / "6").exists()
        assert list((root / name).glob("events.out.tfevents*"))
        (picture,) = (root / name / "pictures").glob("*_00000006.png")
        assert np.asarray(Image.open(picture)).std() > 0
    assert json.loads((root / "config.json").read_text())["data"]["dataset"] == "digits"
    with np.load(root / "samples" / "samples.npz", allow_pickle=False) as samples:
        assert samples["arr_0"].shape == (20, 8, 8, 3) and samples["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(samples["arr_1"], np.arange(20) % 10)
    for picture in ("grid", "strips"):
        assert np.asarray(Image.open(root / "samples" / f"{picture}.png")).std() > 0


def test_training_on_a_folder_of_images_of_every_kind_and_size(tiny_config, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(80):
        name, mode = (("a.jpg", "RGB"), ("b.png", "RGB"), ("c.png", "L"), ("d.jpg", "L"))[
            number % 4
        ]
        sides = rng.integers(5, 40, 2)
        image = Image.fromarray(rng.integers(0, 256, (*sides, 3), np.uint8)).convert(mode)
        path = tmp_path / "images" / ("left", "right")[number // 40] / f"{number}{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    data = tiny_config.data
    data.dataset, data.data_dir = f"folder:{tmp_path}/images", str(tmp_path / "datasets")
    prepare(data.dataset, data.data_dir)
    tiny_config.stages = (0, 4)  # Enough here, and compiled sooner.
    for training in (tiny_config.tokenizer.training, tiny_config.generator.training):
        training.epochs = 2 * 64 / 72  # Two steps.
    jobs.train(tiny_config, str(tmp_path / "run"))
    with np.load(tmp_path / "run" / "samples" / "samples.npz", allow_pickle=False) as samples:
        assert samples["arr_0"].shape == (20, 8, 8, 3)
    (batch,) = pipeline.evaluation_batches(data, "test", 8)
    assert sorted(batch["label"]) == [0] * 4 + [1] * 4


def test_finished_training_is_not_repeated(trained, caplog):
    config, workdir = trained
    config.generator.training.learning_rate = 1.0  # Would be in config.json.

    def times():
        found = (path for path in pathlib.Path(workdir).rglob("*") if path.name != "lock")
        return {path: path.stat().st_mtime_ns for path in found if path.is_file()}

    before = times()
    with caplog.at_level("INFO", logger="nvg_jax"):
        jobs.train(config, workdir)
    assert times() == before and "all is there" in caplog.text


def test_a_second_training_is_refused_and_others_read(trained):
    config, workdir = trained
    with lock.locked(workdir, "train"):
        with pytest.raises(UserError, match=r"another run is at work in .*train, process \d+ on"):
            jobs.train(config, workdir)
        jobs.load_model(config, workdir)
    jobs.train(config, workdir)


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
    images = next(pipeline.train_iterator(config.data, Order(512, seed=7)))["image"]
    tokenize = jax.jit(functools.partial(tokenizer.apply, method=Tokenizer.tokenize))
    _, canvases = tokenize(variables, pixels.from_uint8(jnp.asarray(images)))
    expected = 1 / np.asarray(canvases).std(axis=(0, 2, 3))[1:]
    scales = np.asarray(variables["stats"]["quantizer"]["canvas_scales"])
    assert scales[0] == 1.0
    np.testing.assert_allclose(scales[1:], expected, rtol=0.2)


@pytest.mark.slow
def test_training_starts_from_given_weights(pretrained_config, trained, tmp_path):
    config, run = pretrained_config, tmp_path / "run"
    given = jobs.load_model(config, str(run)).generator_variables["params"]
    config.data.num_classes = 12
    config.generator.training.epochs = 1 / 22
    config.generator.training.learning_rate = 0.0
    jobs.train(config, str(run))
    request = json.loads((run / "samples" / "request.json").read_text())
    assert request["generator"] == "step 1" and "tiny/tokenizer" in request["tokenizer"]
    config.tokenizer.checkpoint, config.pretrained = request["tokenizer"], ""
    tuned = jobs.load_model(config, str(run)).generator_variables["params"]
    for params in (given, tuned):
        sizes = {len(part.pop("class_embed")["embedding"]) for part in params.values()}
        assert sizes == {11 if params is given else 13}
    # The average of equal weights is rounded.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), tuned, given)
    assert not (run / "tokenizer").exists()


def test_stopping_saves_and_says_how_to_go_on(tiny_config, tmp_path, monkeypatch):
    answers = iter([False, False, True])
    stop = contextlib.nullcontext(lambda: next(answers, True))
    monkeypatch.setattr(loop, "stop_signal", lambda: stop)
    with pytest.raises(Preempted, match="saved step . of 6 .* run the same command again"):
        jobs.train(tiny_config, str(tmp_path))
    steps = [path.name for path in (tmp_path / "tokenizer" / "checkpoints").iterdir()]
    assert steps and all(int(step) < 6 for step in steps)


def test_a_diverging_loss_stops_and_keeps_the_last_checkpoint(tiny_config, tmp_path):
    tiny_config.stages = (0, 4)
    tiny_config.tokenizer.training.epochs = 4 / 22
    tiny_config.tokenizer.training.warmup_steps = 0
    tiny_config.tokenizer.training.schedule = "linear"
    tiny_config.tokenizer.training.decay_start = 1.0
    tiny_config.tokenizer.training.checkpoint_every = 1
    tiny_config.tokenizer.training.learning_rate = 1e9
    with pytest.raises(UserError, match=r"tokenizer is (nan|inf) at step \d: .*step \d is kept"):
        jobs.train(tiny_config, str(tmp_path))


def test_another_architecture_in_the_workdir_is_named(trained):
    config, workdir = trained
    config.tokenizer.model.vocab_size = 32
    before = epath.Path(workdir, "config.json").read_text()
    with pytest.raises(UserError, match="codebook 16.*codebook 32|codebook 32.*codebook 16"):
        jobs.train(config, workdir)
    assert epath.Path(workdir, "config.json").read_text() == before


def test_bad_requests_are_noticed_before_training(tiny_config, tmp_path):
    tiny_config.sampling.classes = (-1,)
    with pytest.raises(UserError, match="classes=.-1,.: it has to be"):
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


def test_dataset_that_is_not_prepared(tiny_config, tmp_path):
    tiny_config.data.data_dir = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="python -m nvg_jax.data.prepare digits"):
        jobs.train(tiny_config, str(tmp_path))


@pytest.mark.slow
def test_a_token_cache_takes_the_place_of_images(trained, exported, tmp_path):
    config, _ = trained
    config.tokenizer.checkpoint = str(exported / "tokenizer")
    cache = config.token_cache
    cache.directory, cache.num_crops = str(tmp_path / "cache"), 1
    cache.batch_size, cache.shard_size = 64, 1000
    jobs.train(config, str(tmp_path / "run"))
    shards = sorted((tmp_path / "cache").glob("*.array_record"))
    assert len(shards) == 2 and (tmp_path / "run" / "samples" / "grid.png").exists()
    # Once it is made, the images are not needed, and it is not made again.
    written = [path.stat().st_mtime_ns for path in shards]
    config.data.data_dir = str(tmp_path / "nowhere")
    jobs.train(config, str(tmp_path / "other"))
    assert [path.stat().st_mtime_ns for path in shards] == written
    ours, theirs = (
        jobs.load_model(config, str(tmp_path / name)).generator_variables
        for name in ("run", "other")
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_repa_needs_the_images(tiny_config, tmp_path):
    tiny_config.token_cache.directory = str(tmp_path / "cache")
    tiny_config.generator.training.repa.weight = 0.5
    with pytest.raises(UserError, match="REPA needs images.*repa.weight=0"):
        jobs.train(tiny_config, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_frozen_networks_that_are_missing_are_noticed_at_once(tiny_config, tmp_path):
    tiny_config.frozen.directory = str(tmp_path / "none")
    for section, name in ((tiny_config.tokenizer.training, "lpips"), (None, "dinov2")):
        if section:
            section.lpips_weight = 1.0
        else:
            tiny_config.tokenizer.training.lpips_weight = 0.0
            tiny_config.generator.training.repa.weight = 0.5
        with pytest.raises(UserError, match=f"python -m nvg_jax.interop.fetch {name}"):
            jobs.train(tiny_config, str(tmp_path / "run"))
    assert not list(tmp_path.glob("run/*/checkpoints"))


def test_microbatches_that_do_not_divide_the_batch(tiny_config, tmp_path):
    tiny_config.generator.training.microbatches = 3
    with pytest.raises(UserError, match="microbatches=3 does not divide batch_size=64"):
        jobs.train(tiny_config, str(tmp_path))
    tiny_config.generator.training.microbatches = 2
    tiny_config.generator.training.stage_stride = 5
    with pytest.raises(UserError, match="stage_stride=5 does not divide 32, config.generator"):
        jobs.train(tiny_config, str(tmp_path))
