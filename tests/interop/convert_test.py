import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from nvg_jax import sharding
from nvg_jax.checkpoint import load_weights
from nvg_jax.errors import UserError
from nvg_jax.generator.build import build_generator, build_tokenizer
from nvg_jax.interop import convert, released

torch = pytest.importorskip("torch", reason="reads PyTorch checkpoints")

REPOSITORY = pathlib.Path(__file__).parents[2]


class Settings:
    """What a training may keep beside its weights: a class that the reader need not have."""

    def __init__(self):
        self.learning_rate = 1e-4


class Trap:
    """A checkpoint that writes a file when its pickle is run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


def _save(path, state_dict, **others):
    tensors = {name: torch.from_numpy(array.copy()) for name, array in state_dict.items()}
    torch.save({"epoch": 3, "state_dict": tensors, **others}, path)
    return str(path)


@pytest.fixture
def config():
    """The golden generator and its tokenizer, as config."""
    config = base.get_config(depth=2, epochs=1, decay_start=1.0, decay_to=0.0)
    config.data.num_classes = 10
    config.tokenizer.model.width = 32
    config.tokenizer.model.multipliers = (1, 1, 1, 2, 2)
    config.tokenizer.model.num_blocks = 1
    config.tokenizer.model.vocab_size = 64
    return config


@pytest.fixture
def tokenizer_file(golden_generator_tokenizer, tmp_path):
    return _save(tmp_path / "vq.ckpt", golden_generator_tokenizer.state_dict)


@pytest.fixture
def generator_file(golden_generator, tmp_path):
    return _save(tmp_path / "d2.ckpt", golden_generator.state_dict)


def _load(directory, module, *example):
    shapes = sharding.unnamed(jax.eval_shape(module.init, jax.random.key(0), *example))
    return load_weights(directory, shapes, module.architecture)


def test_converted_weights_are_loaded_as_they_were(
    config, golden_generator_tokenizer, golden_generator, tokenizer_file, generator_file, tmp_path
):
    use = convert.convert(config, tokenizer_file, generator_file, str(tmp_path / "out"))
    assert use == [
        f"--config.tokenizer.checkpoint={tmp_path}/out/tokenizer",
        f"--config.generator.checkpoint={tmp_path}/out/generator",
    ]
    loaded = _load(tmp_path / "out/generator", build_generator(config), jnp.zeros(1, jnp.int32))
    jax.tree.map(np.testing.assert_array_equal, loaded, golden_generator.variables)

    images = jnp.zeros((1, 256, 256, 3))
    loaded = _load(tmp_path / "out/tokenizer", build_tokenizer(config), images)
    expected = golden_generator_tokenizer.variables
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], expected["params"])
    np.testing.assert_array_equal(
        loaded["stats"]["quantizer"]["canvas_scales"],
        released.canvas_scales_of(golden_generator.state_dict),
    )


def test_tokenizer_alone_gets_the_published_scales(config, tokenizer_file, tmp_path):
    use = convert.convert(config, tokenizer_file, "", str(tmp_path / "out"))
    assert use == [f"--config.tokenizer.checkpoint={tmp_path}/out/tokenizer"]
    images = jnp.zeros((1, 256, 256, 3))
    loaded = _load(tmp_path / "out/tokenizer", build_tokenizer(config), images)
    np.testing.assert_array_equal(
        loaded["stats"]["quantizer"]["canvas_scales"], released.PUBLISHED_CANVAS_SCALES
    )


def test_other_dtypes_and_gradients_are_read_as_float32_numbers(tmp_path):
    path = tmp_path / "mixed.ckpt"
    weight = torch.nn.Parameter(torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
    torch.save({"state_dict": {"weight": weight, "steps": torch.tensor(7), "name": "x"}}, path)
    tensors = convert.load_state_dict(str(path))
    assert set(tensors) == {"weight", "steps"}
    np.testing.assert_array_equal(tensors["weight"], np.float32([1.5, -2.0]))
    assert tensors["steps"] == 7


def test_nothing_that_a_checkpoint_names_is_run(golden_generator, tmp_path):
    written = tmp_path / "written"
    path = _save(
        tmp_path / "d2.ckpt",
        golden_generator.state_dict,
        hyper_parameters=Settings(),
        callbacks=[pathlib.PurePosixPath("a/b"), Trap(written)],
    )
    torch.load(path, weights_only=False)
    assert written.exists()  # The trap works.
    written.unlink()
    tensors = convert.load_state_dict(path)
    assert not written.exists()
    assert set(tensors) == set(golden_generator.state_dict)


def test_a_name_that_pytorch_refuses_is_named(golden_generator, tmp_path):
    class System:
        def __reduce__(self):
            import os

            return (os.system, ("true",))

    path = _save(tmp_path / "d2.ckpt", golden_generator.state_dict, callbacks=System())
    with pytest.raises(UserError, match="d2.ckpt is not .* safe to read: .*posix.system"):
        convert.load_state_dict(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 nor this"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="broken.ckpt is not a checkpoint"):
        convert.load_state_dict(str(path))


def test_a_truncated_checkpoint_is_named(generator_file):
    path = pathlib.Path(generator_file)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="d2.ckpt is not a checkpoint"):
        convert.load_state_dict(generator_file)


def test_a_missing_file_and_one_without_weights_are_named(tmp_path):
    with pytest.raises(UserError, match="cannot read .*absent.ckpt: No such file"):
        convert.load_state_dict(str(tmp_path / "absent.ckpt"))
    torch.save({"model": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="other.ckpt .* holds no state_dict"):
        convert.load_state_dict(str(tmp_path / "other.ckpt"))


def test_nothing_is_written_unless_everything_fits(
    config, tokenizer_file, golden_generator, tmp_path
):
    state_dict = dict(golden_generator.state_dict)
    del state_dict["nvgformer.structure_embed.bias"]
    path = _save(tmp_path / "d2.ckpt", state_dict)
    with pytest.raises(UserError, match="nvgformer.structure_embed.bias is missing"):
        convert.convert(config, tokenizer_file, path, str(tmp_path / "out"))
    with pytest.raises(UserError, match="nothing to convert"):
        convert.convert(config, "", "", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_command_says_how_to_use_the_weights_or_what_is_wrong(generator_file, tmp_path):
    def run(generator):
        model = "--config.generator.model"
        command = [
            *(sys.executable, "-m", "nvg_jax.interop.convert", "--config=configs/nvg_d12.py"),
            *("--config.data.num_classes=10", "--config.tokenizer.model.vocab_size=64"),
            *(f"{model}.depth=2", f"{model}.content_width=128", f"{model}.content_heads=2"),
            *(f"{model}.structure_width=64", f"{model}.structure_heads=1"),
            *(f"--generator={generator}", f"--output={tmp_path}/out"),
        ]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    result = run(generator_file)
    assert result.returncode == 0, result.stderr
    assert f"--config.generator.checkpoint={tmp_path}/out/generator" in result.stdout
    result = run(generator_file)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/out/generator exists")
    assert "Traceback" not in result.stderr
