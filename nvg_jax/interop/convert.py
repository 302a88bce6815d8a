"""Converts the authors' released PyTorch checkpoints to weights directories of this program.

    python -m nvg_jax.interop.convert --config=configs/nvg_d16.py \
        --tokenizer=ckpt/ae.ckpt --generator=ckpt/d16.ckpt --output=DIR

The release is the gated Hugging Face repository yikaiwang/NVG, where one agrees to a non-commercial
licence: the tokenizer `ckpt/ae.ckpt` and generators of 16 blocks and more, `ckpt/d16.ckpt` and so
on. Nothing that a checkpoint names is run or imported.
"""

import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from nvg_jax import cli
from nvg_jax.checkpoint import save_weights
from nvg_jax.errors import UserError
from nvg_jax.generator.model import build_generator
from nvg_jax.interop import released
from nvg_jax.interop.torch_file import float_arrays, read_torch_file
from nvg_jax.tokenizer.model import build_tokenizer


def convert(config: ConfigDict, tokenizer: str, generator: str, output: str) -> list[str]:
    """Writes the weights of the given checkpoints to `output`/tokenizer and `output`/generator.

    tokenizer, generator: paths of `.ckpt` files; an empty one is left out. With both, the canvas
    scales are those that the generator was trained with; without it, the published ones.

    Returns the flags with which other commands use the weights. UserError: there is nothing to
    convert, a file cannot be read or does not fit the config, or a directory is there already.
    """
    if not tokenizer and not generator:
        raise UserError("nothing to convert: give --tokenizer, --generator or both")
    generator_tensors = load_state_dict(generator) if generator else {}
    converted = {}
    if tokenizer:
        module = build_tokenizer(config)
        scales = released.canvas_scales_of(generator_tensors) if generator else None
        variables = released.tokenizer_variables(load_state_dict(tokenizer), module, scales)
        converted["tokenizer"] = variables, module.architecture
    if generator:
        module = build_generator(config)
        variables = released.generator_variables(generator_tensors, module)
        converted["generator"] = variables, module.architecture
    for name, (variables, architecture) in converted.items():
        save_weights(epath.Path(output) / name, variables, architecture)
    return [f"--config.{name}.checkpoint={epath.Path(output) / name}" for name in converted]


def load_state_dict(path: str) -> dict[str, np.ndarray]:
    """The tensors of a Lightning checkpoint's `state_dict`, in float32.

    UserError: PyTorch is not installed, or the file is missing, damaged, no Lightning checkpoint,
    or names what PyTorch's restricted unpickler refuses.
    """
    checkpoint = read_torch_file(path)
    state_dict = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state_dict, dict):
        raise UserError(f"{path} is not a Lightning checkpoint: it holds no state_dict")
    return float_arrays(state_dict)


def main() -> None:
    values = flags.FLAGS
    use = convert(values.config, values.tokenizer, values.generator, values.output)
    print(f"wrote the weights to {values.output}; use them with\n  {' '.join(use)}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The config that describes the models.")
    flags.DEFINE_string("tokenizer", "", "The released tokenizer, ckpt/ae.ckpt.")
    flags.DEFINE_string("generator", "", "A released generator, as ckpt/d16.ckpt.")
    flags.DEFINE_string("output", None, "Directory to write to.")
    flags.mark_flags_as_required(["config", "output"])
    cli.run(main)
