"""Whole generators: as configs describe them, and as the paper counts them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import nvg_d12, nvg_d16, nvg_d20, nvg_d24
from nvg_jax.errors import UserError
from nvg_jax.generator.model import Generator, build_generator
from nvg_jax.generator.sizes import Sizes, StackSizes
from nvg_jax.tokenizer.model import build_tokenizer

SMALL = Sizes(
    content=StackSizes(depth=2, width=128, num_heads=2),
    structure=StackSizes(depth=2, width=64, num_heads=1),
    grid=(4, 4),
    latent_channels=8,
    vocab_size=16,
    num_classes=3,
)


@pytest.fixture
def config():
    return nvg_d12.get_config()


def test_generator_is_built_over_the_tokenizers_positions_and_codes(config):
    config.data.image_size = 128
    config.data.num_classes = 7
    config.tokenizer.model.vocab_size = 512
    tokenizer, sizes = build_tokenizer(config), build_generator(config).sizes
    assert tokenizer.grid == sizes.grid == (8, 8)
    assert tokenizer.last_stage == sizes.last_stage == 6
    assert tokenizer.vocab_size == sizes.vocab_size == 512
    assert (sizes.content.depth, sizes.num_classes) == (12, 7)
    assert sizes.structure.dtype == "bfloat16" and sizes.content.remat == "dots"
    assert sizes.content.drop_path == pytest.approx(0.05)
    assert sizes.without_remat().structure.remat == "none"


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("data.image_size", 250, "config.data.image_size=250 is not a multiple of 16"),
        ("data.image_size", 96, "36 latent positions are not a power of two"),
        ("data.image_size", 16, "1 latent positions are not a power of two"),
        ("tokenizer.model.width", 48, "model.width=48 is not a multiple of norm_groups=32"),
        ("tokenizer.model.precision", "float8", "precision='float8': .* 'bfloat16', .*'float32'"),
        ("generator.model.content_heads", 7, "content_width=768 .* content_heads=7"),
        ("generator.model.structure_heads", 0, "structure_heads=0: .* equal to 1"),
        ("generator.model.structure_heads", 24, "a head of width 16 has no room .* 8 structure"),
        ("generator.model.dtype", "float31", "model.dtype='float31': .* 'float32' or 'bfloat16'"),
        ("generator.model.remat", "some", "model.remat='some': .*'full'"),
        ("generator.model.attention", "sdpa", "model.attention='sdpa': .* 'xla', 'splash' or"),
        ("generator.model.structure", "gan", "model.structure='gan': it has to be 'flow'"),
    ],
)
def test_what_does_not_fit_is_named(config, key, value, message):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        build_generator(config)


def _num_parameters(tree):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "config_file, content, structure",
    [
        (nvg_d12, 108_421_408, 27_469_064),
        (nvg_d16, 255_183_904, 64_369_672),
        (nvg_d20, 496_602_912, 124_972_808),
        (nvg_d24, 856_271_392, 215_176_712),
    ],
)
def test_number_of_parameters_is_the_papers(config_file, content, structure):
    generator = build_generator(config_file.get_config())
    variables = jax.eval_shape(generator.init_variables, jax.random.key(0))
    assert _num_parameters(variables["params"]["content"]) == content
    assert _num_parameters(variables["params"]["structure"]) == structure
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_number_of_the_tokenizers_parameters_is_the_papers(config):
    tokenizer = build_tokenizer(config)
    params = jax.eval_shape(tokenizer.init_variables, jax.random.key(0))["params"]
    assert _num_parameters(params["encoder"]) == 45_025_696
    assert _num_parameters(params["decoder"]) == 65_092_355
    assert _num_parameters(params["quantizer"]) == 214_304


def _with_stacks(sizes: Sizes, **changes) -> Sizes:
    stacks = {
        name: dataclasses.replace(getattr(sizes, name), **changes)
        for name in ("content", "structure")
    }
    return dataclasses.replace(sizes, **stacks)


def test_bfloat16_is_close_to_float32_and_gives_float32(random_variables):
    params = random_variables(Generator(SMALL).init_variables)["params"]
    key, class_id = jax.random.key(0), jnp.array([0, 3])
    canvas, noisy = jax.random.normal(key, (2, 16, 8)), jax.random.normal(key, (2, 16, 4))
    structure, stage = jnp.tile(jnp.arange(16), (2, 1)), jnp.array([1, 2])
    scales, time = jnp.ones(6), jnp.array([0.2, 0.9])

    def run(sizes):
        @jax.jit
        def both(params):
            content, structure_flow = Generator(sizes).content, Generator(sizes).structure
            of_content = (canvas, structure, stage, class_id, scales)
            of_structure = (noisy, canvas, structure, stage, time, class_id)
            return (
                content.apply({"params": params["content"]}, *of_content),
                structure_flow.apply({"params": params["structure"]}, *of_structure),
            )

        return both(params)

    halves = run(_with_stacks(SMALL, dtype="bfloat16"))
    for full, half in zip(run(SMALL), halves, strict=True):
        assert half.dtype == jnp.float32
        assert 0 < jnp.abs(half - full).mean() < 0.02 * jnp.abs(full).mean()


def test_architecture_tells_generators_apart():
    variants = [
        _with_stacks(SMALL, depth=3),
        dataclasses.replace(SMALL, content=dataclasses.replace(SMALL.content, num_heads=1)),
        dataclasses.replace(SMALL, structure=dataclasses.replace(SMALL.structure, width=128)),
        dataclasses.replace(SMALL, grid=(8, 8)),
        dataclasses.replace(SMALL, vocab_size=128),
        dataclasses.replace(SMALL, num_classes=11),
        dataclasses.replace(SMALL, structure_generator="another"),
    ]
    assert len({sizes.architecture for sizes in [SMALL, *variants]}) == 8
    # How it is computed is no part of what a checkpoint has to agree with.
    same = _with_stacks(SMALL, drop_path=0.1, remat="full", attention="cudnn", dtype="bfloat16")
    assert same.architecture == SMALL.architecture
