"""All jobs with a model of which few stages are painted."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax import jobs, pixels, sharding
from nvg_jax.data import pipeline, token_cache
from nvg_jax.data.stream import Order
from nvg_jax.demo.bounds import IN_TURN
from nvg_jax.demo.studio import Studio, Wishes
from nvg_jax.errors import UserError
from nvg_jax.generator.model import build_generator
from nvg_jax.interop.convert import convert
from nvg_jax.jobs.job import check
from nvg_jax.jobs.model import initial_generator
from nvg_jax.tokenizer import inference

NUM_TOKENS = 1 + 4 + 16


@pytest.fixture
def painted(tiny_config, tmp_path_factory):
    """The config and workdir of a finished training with the stages 0, 2 and 4, made once."""
    workdir = tmp_path_factory.getbasetemp() / "painted"
    tiny_config.stages = (0, 2, 4)
    tiny_config.generator.training.epochs = 23 / 22  # Images come again: tokens are kept.
    if not workdir.exists():
        jobs.train(tiny_config, str(workdir))
    return tiny_config, str(workdir)


@pytest.mark.xdist_group("painted")
def test_trained_on_cached_tokens_which_are_those_of_the_images(painted):
    config, workdir = painted
    assert len(np.load(f"{workdir}/samples/samples.npz")["arr_0"]) == 20
    meta = json.loads(pathlib.Path(workdir, "token_cache", "meta.json").read_text())
    assert meta["num_tokens"] == NUM_TOKENS and meta["architecture"].endswith("stages 0,2,4)")
    model = jobs.load_model(config, workdir)
    tokenizer, variables = model.tokenizer, model.tokenizer_variables
    fingerprint = token_cache.fingerprint(
        sharding.on_host(variables), tokenizer.arithmetic.exactness
    )
    about = f"{workdir}/token_cache", config.data, tokenizer.architecture, fingerprint
    batches = token_cache.train_iterator(*about, Order(16, 0))
    batch = next(batches)
    assert batch["tokens"].shape == (16, NUM_TOKENS)
    images = pipeline.train_iterator(config.data, Order(16, 0))
    of_images = next(images)
    np.testing.assert_array_equal(batch["label"], of_images["label"])
    floats = pixels.from_uint8(jnp.asarray(of_images["image"]))
    found = inference.sequences_of(tokenizer, variables, floats)
    np.testing.assert_array_equal(batch["structure"], found.structure)
    np.testing.assert_array_equal(batch["tokens"], found.tokens)
    batches.close()
    images.close()


@pytest.mark.xdist_group("painted")
def test_every_job_paints_them(painted):
    config, workdir = painted
    config.control.structure, config.control.stages = "left", 2
    folder = jobs.sample(config, workdir)
    assert (folder / "given.png").exists()
    config.control.structure, config.control.stages = "", 0
    config.control.reference, config.sampling.classes = "test:3", (3,)
    config.control.num_samples = 1
    assert (jobs.control(config, workdir) / "stages.png").exists()
    config.control.reference = ""
    config.edit.update({"image": "test:3", "mask": "left", "num_samples": 2})
    assert (jobs.edit(config, workdir) / "edited.png").exists()
    assert (jobs.reconstruct(config, workdir) / "strips.png").exists()
    config.evaluation.metrics = ("codebook_usage", "variation")
    found = jobs.evaluate(config, workdir)
    assert len(found["codebook_usage_by_stage"]) == len(found["variation_both"]) == 3


@pytest.mark.xdist_group("painted")
def test_the_page_shows_them(painted):
    studio = Studio(*painted, most=2)
    every = list(studio.samples(Wishes(IN_TURN, 0, 2, 1.0, 1.0, 2)))
    assert [made.stage for made in every] == [0, 2, 4]
    assert every[1].words == "Stage 2 of 4: 4 tokens" and every[-1].words == "2 made in 3 stages."
    assert every[-1].strip().std() > 10 and studio.taken_apart(every[-1].images[0]).std() > 10


@pytest.mark.xdist_group("painted")
def test_weights_of_another_ladder_are_refused(painted, tmp_path):
    config, workdir = painted
    config.export.format = "safetensors"
    jobs.export(config, workdir)
    for name in ("tokenizer", "generator"):
        config[name].checkpoint = f"{workdir}/export/{name}.safetensors"
    assert jobs.load_model(config, str(tmp_path)).tokenizer.stages == (0, 2, 4)
    for config.stages in ((), (0, 4)):
        with pytest.raises(UserError, match="stages 0,2,4"):
            jobs.load_model(config, str(tmp_path))
        with pytest.raises(UserError, match="stages 0,2,4"):
            initial_generator(config, build_generator(config))


def test_what_does_not_go_together_is_one_line(tiny_config):
    for stages in ((0, 2), (2, 0, 4), (0, 5)):
        tiny_config.stages = stages
        with pytest.raises(UserError, match=r"config.stages=\(.*of which the last is 4"):
            check(tiny_config)
    tiny_config.stages = ("all",)
    with pytest.raises(UserError, match="config.stages="):
        check(tiny_config)
    tiny_config.stages, tiny_config.sampling.structure_stages = (0, 2, 4), (1,)
    with pytest.raises(UserError, match=r"structure_stages=\(1,\): with config.stages=\(0, 2, 4\)"):
        check(tiny_config)
    with pytest.raises(UserError, match="released models paint all"):
        convert(tiny_config, "ae.ckpt", "d16.ckpt", "nowhere")
    tiny_config.method, tiny_config.sampling.structure_stages = "var", ()
    tiny_config.evaluation.metrics = ("psnr",)
    with pytest.raises(UserError, match=r"config.stages=\(0, 2, 4\) is for the method nvg"):
        check(tiny_config)
