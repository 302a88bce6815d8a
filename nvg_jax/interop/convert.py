"""Converts the authors' released PyTorch checkpoints to weights directories of this program.

    python -m nvg_jax.interop.convert --config=configs/nvg_d16.py \
        --generator=ckpt/d16.ckpt --output=DIR [--tokenizer=ckpt/ae.ckpt]

The release is the gated Hugging Face repository yikaiwang/NVG, where one agrees to a non-commercial
licence: the tokenizer `ckpt/ae.ckpt` and generators of 16 blocks and more, `ckpt/d16.ckpt` and so
on. Nothing that a checkpoint names is run or imported.
"""

from nvg_jax import stopping

if __name__ == "__main__":
    stopping.watch()  # Before the imports, which take a while.

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from nvg_jax import cli
from nvg_jax.errors import UserError
from nvg_jax.generator.model import build_generator
from nvg_jax.interop import released
from nvg_jax.interop.torch_file import stored_tensors
from nvg_jax.interop.translate import Tensors
from nvg_jax.tokenizer.model import build_tokenizer
from nvg_jax.weights import save_weights


def convert(config: ConfigDict, tokenizer: str, generator: str, output: str) -> list[str]:
    """Writes the weights of the given checkpoints to `output`/tokenizer and `output`/generator.

    tokenizer, generator: paths of `.ckpt` files; an empty one is left out. With a generator, its
    tokenizer and the canvas scales are those that it was trained with; without, the canvas scales
    are the published ones.

    Returns the flags with which other commands use the weights. UserError: there is nothing to
    convert, a file cannot be read or does not fit the config, the tokenizer is not the one that the
    generator was trained on, or a directory is there already.
    """
    if not tokenizer and not generator:
        raise UserError("nothing to convert: give --tokenizer, --generator or both")
    if config.stages:
        raise UserError(
            f"config.stages={config.stages}: released models paint all: leave it empty, as ()"
        )
    targets = {name: epath.Path(output) / name for name in ("tokenizer", "generator")}
    if not generator:
        del targets["generator"]
    for target in targets.values():
        if target.exists():
            raise UserError(f"{target} exists already: choose another place, or remove it first")
    print("reading " + " and ".join(filter(None, (tokenizer, generator))), flush=True)
    generator_tensors = stored_tensors(generator, "state_dict") if generator else {}
    scales = released.canvas_scales_of(generator_tensors) if generator else None
    tokenizer_tensors = _tokenizer_tensors(tokenizer, generator, generator_tensors)
    module = build_tokenizer(config)
    variables = released.tokenizer_variables(tokenizer_tensors, module, scales)
    converted = {"tokenizer": (variables, module.architecture)}
    if generator:
        module = build_generator(config)
        variables = released.generator_variables(generator_tensors, module)
        converted["generator"] = variables, module.architecture
    for name, target in targets.items():
        print(f"writing {target}", flush=True)
        save_weights(target, *converted.pop(name))  # Nothing keeps it longer than needed.
    return [f"--config.{name}.checkpoint={target}" for name, target in targets.items()]


def _tokenizer_tensors(tokenizer: str, generator: str, generator_tensors: Tensors) -> Tensors:
    """Those that the generator carries or, where it carries none, those of the tokenizer's file.

    Says which; UserError: there are none, or the file's are not those that the generator carries.
    """
    given = stored_tensors(tokenizer, "state_dict") if tokenizer else {}
    carried = released.carried_tokenizer(generator_tensors)
    if not generator:
        return given
    if not carried:
        if not tokenizer:
            raise UserError(f"{generator} carries no tokenizer: give its file as well")
        print(f"{generator} carries no tokenizer, with which {tokenizer} could be compared")
        return given
    if not tokenizer:
        print(f"the tokenizer is the one that {generator} carries")
        return carried
    kind = released.agreeing_copy(given, carried)
    print(f"the tokenizer that {generator} carries are the {kind} tensors of {tokenizer}")
    return carried


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
