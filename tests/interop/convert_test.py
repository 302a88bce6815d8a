import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import base
from nvg_jax import sharding
from nvg_jax.checkpoint import load_weights
from nvg_jax.errors import UserError
from nvg_jax.generator.model import build_generator
from nvg_jax.interop import convert, released
from nvg_jax.tokenizer.model import build_tokenizer

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
def config(golden_tokenizer, golden_generator):
    """The golden generator and its tokenizer, as config."""
    sizes = golden_tokenizer.arrays | golden_generator.arrays
    depth = int(sizes["config.depth"])
    config = base.get_config(depth=depth, epochs=1, decay_start=1.0, decay_to=0.0)
    config.data.num_classes = int(sizes["config.num_classes"])
    config.tokenizer.model.width = int(sizes["config.ch"])
    config.tokenizer.model.multipliers = tuple(map(int, sizes["config.ch_mult"]))
    factor = 2 ** (len(config.tokenizer.model.multipliers) - 1)
    config.data.image_size = factor * golden_generator.arrays["latent"].shape[-1]
    config.tokenizer.model.num_blocks = int(sizes["config.num_res_blocks"])
    config.tokenizer.model.vocab_size = int(sizes["config.vocab"])
    return config


@pytest.fixture
def tokenizer_file(golden_generator_tokenizer, tmp_path):
    return _save(tmp_path / "ae.ckpt", golden_generator_tokenizer.state_dict)


@pytest.fixture
def generator_file(golden_generator, tmp_path):
    return _save(tmp_path / "d16.ckpt", golden_generator.state_dict)


def _load(directory, module):
    shapes = jax.eval_shape(module.init_variables, jax.random.key(0))
    return load_weights(directory, sharding.unnamed(shapes), module.architecture)


def test_converted_weights_are_loaded_as_they_were(
    config, golden_generator_tokenizer, golden_generator, tokenizer_file, generator_file, tmp_path
):
    use = convert.convert(config, tokenizer_file, generator_file, str(tmp_path / "out"))
    assert use == [
        f"--config.tokenizer.checkpoint={tmp_path}/out/tokenizer",
        f"--config.generator.checkpoint={tmp_path}/out/generator",
    ]
    loaded = _load(tmp_path / "out/generator", build_generator(config))
    jax.tree.map(np.testing.assert_array_equal, loaded, golden_generator.variables)

    loaded = _load(tmp_path / "out/tokenizer", build_tokenizer(config))
    expected = golden_generator_tokenizer.variables
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], expected["params"])
    np.testing.assert_array_equal(
        loaded["stats"]["quantizer"]["canvas_scales"],
        released.canvas_scales_of(golden_generator.state_dict),
    )


def test_tokenizer_alone_gets_the_published_scales(config, full_size, tmp_path):
    config.data.image_size = full_size.module.image_size
    tokenizer_file = _save(tmp_path / "ae.ckpt", full_size.state_dict)
    use = convert.convert(config, tokenizer_file, "", str(tmp_path / "out"))
    assert use == [f"--config.tokenizer.checkpoint={tmp_path}/out/tokenizer"]
    loaded = _load(tmp_path / "out/tokenizer", build_tokenizer(config))
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
        tmp_path / "d16.ckpt",
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

    path = _save(tmp_path / "d16.ckpt", golden_generator.state_dict, callbacks=System())
    with pytest.raises(UserError, match="d16.ckpt is not .* safe to read: .*posix.system"):
        convert.load_state_dict(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 nor this", None])
def test_a_file_that_is_no_checkpoint_is_named(generator_file, content):
    """The last one is cut off."""
    path = pathlib.Path(generator_file)
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(UserError, match="d16.ckpt is not a checkpoint"):
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
    path = _save(tmp_path / "d16.ckpt", state_dict)
    with pytest.raises(UserError, match="nvgformer.structure_embed.bias is missing"):
        convert.convert(config, tokenizer_file, path, str(tmp_path / "out"))
    with pytest.raises(UserError, match="nothing to convert"):
        convert.convert(config, "", "", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_command_says_how_to_use_the_weights_or_what_is_wrong(config, generator_file, tmp_path):
    changes = {"data.num_classes": config.data.num_classes}
    changes |= {"data.image_size": config.data.image_size}
    changes |= {"tokenizer.model.vocab_size": config.tokenizer.model.vocab_size}
    for name in ("depth", "content_width", "content_heads", "structure_width", "structure_heads"):
        changes[f"generator.model.{name}"] = config.generator.model[name]
    command = [
        *(sys.executable, "-m", "nvg_jax.interop.convert", "--config=configs/nvg_d16.py"),
        *(f"--config.{name}={value}" for name, value in changes.items()),
        *(f"--generator={generator_file}", f"--output={tmp_path}/out"),
    ]
    first, second = (
        subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True) for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    assert f"--config.generator.checkpoint={tmp_path}/out/generator" in first.stdout
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/out/generator exists")
    assert "Traceback" not in second.stderr
