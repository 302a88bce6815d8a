import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import nvg_d16
from nvg_jax import sharding
from nvg_jax.errors import UserError
from nvg_jax.generator.model import build_generator
from nvg_jax.interop import convert, released
from nvg_jax.tokenizer.model import build_tokenizer
from nvg_jax.weights import load_weights
from tests import released_model

torch = pytest.importorskip("torch", reason="reads PyTorch checkpoints")

REPOSITORY = pathlib.Path(__file__).parents[2]


def _save(path, *state_dicts):
    """Also what Lightning keeps beside the weights."""
    tensors = {
        name: torch.from_numpy(np.array(array))
        for state_dict in state_dicts
        for name, array in state_dict.items()
    }
    torch.save({"epoch": 3, "state_dict": tensors, "callbacks": [pathlib.Path("a")]}, path)
    return str(path)


def _prefixed(prefix, state_dict, change=0):
    return {prefix + name: np.asarray(array) + change for name, array in state_dict.items()}


@pytest.fixture
def values(golden_tokenizer, golden_generator):
    """The golden generator and its tokenizer, as values of the config."""
    return released_model.config_values(golden_tokenizer, golden_generator)


@pytest.fixture
def config(values):
    config = nvg_d16.get_config()
    config.update_from_flattened_dict(values)
    return config


@pytest.fixture
def tokenizer_dict(golden_generator_tokenizer):
    """As it is released: averages beside raw weights."""
    return released_model.tokenizer_dict(golden_generator_tokenizer)


@pytest.fixture
def tokenizer_file(tokenizer_dict, tmp_path):
    averaged = _prefixed("ema_model.", tokenizer_dict, change=1)
    return _save(tmp_path / "ae.ckpt", tokenizer_dict, averaged, {"loss.bias": np.zeros(2)})


@pytest.fixture
def generator_file(golden_generator, tokenizer_dict, tmp_path):
    """Carries its tokenizer."""
    carried = _prefixed("first_stage_model.", tokenizer_dict | {"loss.bias": np.zeros(2)})
    return _save(tmp_path / "d16.ckpt", golden_generator.state_dict, carried)


@pytest.fixture
def bare_generator_file(golden_generator, tmp_path):
    return _save(tmp_path / "bare.ckpt", golden_generator.state_dict)


def _load(directory, module):
    shapes = jax.eval_shape(module.init_variables, jax.random.key(0))
    return load_weights(directory, sharding.unnamed(shapes), module.architecture)


@pytest.mark.parametrize(
    "files, line",
    [
        ("ae d16", "the tokenizer that {d16} carries are the raw tensors of {ae}"),
        ("d16", "the tokenizer is the one that {d16} carries"),
        ("ae bare", "{bare} carries no tokenizer, with which {ae} could be compared"),
    ],
)
def test_converted_weights_are_loaded_as_they_were(
    config, golden_generator_tokenizer, golden_generator, tokenizer_file, generator_file,
    bare_generator_file, files, line, tmp_path, capsys,
):  # fmt: skip
    tokenizer = tokenizer_file if "ae" in files else ""
    generator = bare_generator_file if "bare" in files else generator_file
    use = convert.convert(config, tokenizer, generator, str(tmp_path / "out"))
    assert use == [
        f"--config.tokenizer.checkpoint={tmp_path}/out/tokenizer",
        f"--config.generator.checkpoint={tmp_path}/out/generator",
    ]
    names = {"ae": tokenizer_file, "d16": generator_file, "bare": bare_generator_file}
    assert line.format(**names) in capsys.readouterr().out.splitlines()
    loaded = _load(tmp_path / "out/generator", build_generator(config))
    jax.tree.map(np.testing.assert_array_equal, loaded, golden_generator.variables)

    loaded = _load(tmp_path / "out/tokenizer", build_tokenizer(config))
    expected = golden_generator_tokenizer.variables
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], expected["params"])
    np.testing.assert_array_equal(
        loaded["stats"]["quantizer"]["canvas_scales"],
        released.canvas_scales_of(golden_generator.state_dict),
    )


def test_the_carried_tokenizer_is_taken_and_another_one_refused(
    config, golden_generator, tokenizer_dict, tokenizer_file, tmp_path, capsys
):
    averaged = _prefixed("first_stage_model.", tokenizer_dict, change=1)
    path = _save(tmp_path / "d16.ckpt", golden_generator.state_dict, averaged)
    convert.convert(config, tokenizer_file, path, str(tmp_path / "averaged"))
    assert f"{path} carries are the averaged tensors of {tokenizer_file}" in capsys.readouterr().out
    loaded = _load(tmp_path / "averaged/tokenizer", build_tokenizer(config))
    expected = tokenizer_dict["quantize.embedding.weight"] + 1
    np.testing.assert_array_equal(loaded["params"]["quantizer"]["codebook"], expected)

    bias = "encoder.conv_in.conv.bias"
    changed = averaged | {f"first_stage_model.{bias}": tokenizer_dict[bias] + 2}
    path = _save(tmp_path / "d16.ckpt", golden_generator.state_dict, changed)
    with pytest.raises(UserError) as error:
        convert.convert(config, tokenizer_file, path, str(tmp_path / "other"))
    number = len(tokenizer_dict)
    assert str(error.value) == (
        f"the tokenizer is not the one on which the generator was trained: {number} of {number} "
        f"raw tensors differ, the first {next(iter(tokenizer_dict))}; 1 of {number} averaged "
        f"tensors differ, the first {bias}. Leave its file out to take the one that the "
        "generator's file carries"
    )
    assert not (tmp_path / "other").exists()


def test_tokenizer_alone_gets_the_published_scales(config, full_size, tmp_path):
    config.data.image_size = full_size.module.image_size
    tokenizer_file = _save(tmp_path / "ae.ckpt", full_size.state_dict)
    use = convert.convert(config, tokenizer_file, "", str(tmp_path / "out"))
    assert use == [f"--config.tokenizer.checkpoint={tmp_path}/out/tokenizer"]
    loaded = _load(tmp_path / "out/tokenizer", build_tokenizer(config))
    np.testing.assert_array_equal(
        loaded["stats"]["quantizer"]["canvas_scales"], released.PUBLISHED_CANVAS_SCALES
    )


def test_nothing_is_written_unless_everything_fits(
    config, tokenizer_file, generator_file, bare_generator_file, golden_generator, tmp_path
):
    state_dict = dict(golden_generator.state_dict)
    del state_dict["nvgformer.structure_embed.bias"]
    path = _save(tmp_path / "lacking.ckpt", state_dict)
    neither = _save(tmp_path / "neither.ckpt", {"loss.bias": np.zeros(2)})
    for tokenizer, generator, message in (
        (tokenizer_file, path, "nvgformer.structure_embed.bias is missing"),
        ("", "", "nothing to convert"),
        ("", bare_generator_file, "bare.ckpt carries no tokenizer: give its file as well"),
        (neither, generator_file, "trained: there are no raw ones; there are no averaged ones"),
        (neither, "", "the checkpoint is no tokenizer: no encoder"),
        (tokenizer_file, tokenizer_file, "no tensor nvgformer.scale_factors"),
    ):
        with pytest.raises(UserError, match=message):
            convert.convert(config, tokenizer, generator, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_taken_is_named_before_anything_is_read(config, tmp_path):
    (tmp_path / "generator").mkdir()
    with pytest.raises(UserError, match="generator exists already: choose another place"):
        convert.convert(config, "", "absent.ckpt", str(tmp_path))


@pytest.mark.slow
def test_command_says_how_to_use_the_weights_or_what_is_wrong(values, generator_file, tmp_path):
    command = [
        *(sys.executable, "-m", "nvg_jax.interop.convert", "--config=configs/nvg_d16.py"),
        *(f"--config.{name}={value}" for name, value in values.items()),
        *(f"--generator={generator_file}", f"--output={tmp_path}/out"),
    ]
    first, second = (
        subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True) for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    assert f"--config.generator.checkpoint={tmp_path}/out/generator" in first.stdout
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/out/tokenizer exists")
    assert "Traceback" not in second.stderr
