"""Trained models taken from one place to another."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax import jobs, sharding
from nvg_jax.errors import UserError
from nvg_jax.generator.model import build_generator
from nvg_jax.jobs.model import initial_generator
from nvg_jax.weights import load_weights, save_weights

equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)


@pytest.fixture(params=["", ".safetensors"], ids=["directory", "file"])
def given(request, trained, exported):
    """A config that names exported weights."""
    config, _ = trained
    for name in ("tokenizer", "generator"):
        config[name].checkpoint = f"{exported}/{name}{request.param}"
    return config


def assert_same_samples(one, other):
    for name in ("arr_0", "arr_1"):
        ours, theirs = (np.load(f"{d}/samples/samples.npz")[name] for d in (one, other))
        np.testing.assert_array_equal(ours, theirs)


def test_exported_weights_serve_every_job(given, trained, tmp_path):
    other = str(tmp_path / "other")
    jobs.sample(given, other)
    jobs.reconstruct(given, other)
    assert_same_samples(trained[1], other)


@pytest.mark.parametrize(
    ("format", "dtype"),
    [("orbax", "bfloat16"), ("safetensors", "bfloat16"), ("safetensors", "float16")],
)
def test_parameters_are_rounded_and_what_was_measured_is_not(
    trained, exported, tmp_path, format, dtype
):
    config, workdir = trained
    exact = jobs.load_model(config, workdir)
    for name in ("tokenizer", "generator"):
        config[name].checkpoint = f"{exported}/{name}"
    config.export.format, config.export.dtype = format, dtype
    jobs.export(config, str(tmp_path))
    for name in ("tokenizer", "generator"):
        (path,) = (tmp_path / "export").glob(f"{name}*")
        config[name].checkpoint = str(path)
        if path.is_file():
            whole = (exported / path.name).stat().st_size
            assert 0.5 * whole < path.stat().st_size < 0.6 * whole
    rounded = jobs.load_model(config, str(tmp_path))
    equal(rounded.tokenizer_variables["stats"], exact.tokenizer_variables["stats"])
    for name in ("tokenizer_variables", "generator_variables"):
        expected = jax.tree.map(
            lambda x: x.astype(dtype).astype(jnp.float32), getattr(exact, name)["params"]
        )
        equal(getattr(rounded, name)["params"], expected)


def test_a_tokenizer_without_a_generator_is_exported_alone(trained, tmp_path, caplog):
    config, workdir = trained
    whole = jobs.load_model(config, workdir)
    shutil.copytree(f"{workdir}/tokenizer", tmp_path / "tokenizer")
    # A training of the generator that has saved nothing yet.
    (tmp_path / "generator" / "checkpoints").mkdir(parents=True)
    with caplog.at_level("INFO", logger="nvg_jax"):
        jobs.export(config, str(tmp_path))
    assert f"no generator in {tmp_path} yet: only the tokenizer is exported" in caplog.messages
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["tokenizer"]
    config.tokenizer.checkpoint = str(tmp_path / "export" / "tokenizer")
    alone = jobs.load_model(config, str(tmp_path), with_generator=False)
    equal(alone.tokenizer_variables, whole.tokenizer_variables)


def test_what_a_dtype_cannot_hold_is_not_exported(trained, exported, tmp_path):
    config, workdir = trained
    model = jobs.load_model(config, workdir)
    large = jax.tree.map(lambda x: x + 1e5, model.generator_variables)
    config.tokenizer.checkpoint = f"{exported}/tokenizer"
    config.generator.checkpoint = str(tmp_path / "large")
    save_weights(tmp_path / "large", large, model.generator.architecture)
    config.export.dtype = "float16"
    with pytest.raises(UserError, match="too large for config.export.dtype=float16: choose bfl"):
        jobs.export(config, str(tmp_path))
    assert not (tmp_path / "export" / "generator").exists()


def test_training_may_start_at_weights_of_another_number_of_classes(given, tmp_path, caplog):
    path = given.generator.checkpoint
    ten = build_generator(given)
    shapes = jax.eval_shape(ten.init_variables, jax.random.key(0))
    old = load_weights(path, sharding.unnamed(shapes), ten.architecture)["params"]
    equal(initial_generator(given, ten)()["params"], old)
    assert "made anew" not in caplog.text
    given.data.num_classes = 12
    with caplog.at_level("INFO", logger="nvg_jax"):
        new = initial_generator(given, build_generator(given))()["params"]
    (said,) = [line for line in caplog.messages if "made anew" in line]
    assert "10 classes" in said and "12 classes" in said
    assert said.endswith("made anew are content/class_embed, structure/class_embed")
    for part in ("content", "structure"):
        embedding = new[part].pop("class_embed")["embedding"]
        del old[part]["class_embed"]
        assert embedding.shape == (13, 32) and np.std(embedding) > 0
    equal(new, old)
    with pytest.raises(UserError, match="10 classes.*, but this config is for .*12 classes"):
        jobs.sample(given, str(tmp_path / "run"))


def test_training_may_go_on_with_guidance_as_an_input_but_not_the_other_way(
    given, tmp_path, caplog
):
    flow = build_generator(given)
    old = initial_generator(given, flow)()["params"]
    given.generator.model.structure, given.generator.model.guided_content = "mean_flow", True
    guided = build_generator(given)
    with caplog.at_level("INFO", logger="nvg_jax"):
        params = initial_generator(given, guided)()["params"]
    (said,) = [line for line in caplog.messages if "made anew" in line]
    assert "structure/interval_embed_out" in said and "class_embed" not in said
    for part, count in (("content", 2), ("structure", 6)):
        new = {name: params[part].pop(name) for name in params[part].keys() - old[part].keys()}
        assert len(new) == count
        assert not any(new[name]["kernel"].any() for name in new if name.endswith("_out"))
    equal(params, old)
    given.generator.checkpoint = str(tmp_path / "guided")
    variables = sharding.make(guided.init_variables, jax.random.key(0))
    save_weights(given.generator.checkpoint, variables, guided.architecture)
    with pytest.raises(
        UserError, match="made with .*mean_flow, guided content.* config is for gen"
    ):
        initial_generator(given, flow)


def test_training_may_go_on_with_a_noised_canvas_and_all_that_is_trained(given, caplog):
    old = initial_generator(given, build_generator(given))()["params"]
    given.generator.model.noised_canvas = True
    equal(initial_generator(given, build_generator(given))()["params"], old)
    assert "made anew" not in caplog.text


def test_training_refuses_weights_that_differ_otherwise(given, tmp_path):
    given.data.num_classes, given.generator.model.depth = 12, 2
    with pytest.raises(UserError, match="made with .*depth 1.*, but this config is for .*depth 2"):
        jobs.train(given, str(tmp_path))
    given.generator.checkpoint = given.tokenizer.checkpoint
    with pytest.raises(UserError, match="made with tokenizer.*, but this config is for generator"):
        jobs.train(given, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_pretrained_weights_stand_for_checkpoints(pretrained_config, trained, exported, tmp_path):
    jobs.sample(pretrained_config, str(tmp_path / "run"))
    assert_same_samples(trained[1], tmp_path / "run")
    pretrained_config.generator.checkpoint = str(exported / "generator")
    sources = jobs.load_model(pretrained_config, str(tmp_path)).sources
    assert sources["generator"] == pretrained_config.generator.checkpoint
    assert sources["tokenizer"] == f"{tmp_path}/pretrained/tiny/tokenizer.safetensors"


def test_pretrained_weights_that_are_not_there_or_do_not_fit(pretrained_config, tmp_path):
    pretrained_config.tokenizer.model.vocab_size = 32
    with pytest.raises(UserError, match="tiny/tokenizer.*codebook 16.*config is for.*codebook 32"):
        jobs.sample(pretrained_config, str(tmp_path / "run"))
    for pretrained_config.pretrained in ("tinny", "__pycache__", "../pretrained/tiny", "a\nb"):
        with pytest.raises(UserError, match="is not among the weights here: other, tiny") as error:
            jobs.sample(pretrained_config, str(tmp_path / "run"))
        assert len(str(error.value).splitlines()) == 1
