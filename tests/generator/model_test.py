import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import nvg_d12, nvg_d16, nvg_d20, nvg_d24
from nvg_jax.generator.build import build_generator, build_tokenizer
from nvg_jax.generator.model import Generator


def _num_parameters(tree):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "config, content, structure",
    [
        (nvg_d12, 108_421_408, 27_469_064),
        (nvg_d16, 255_183_904, 64_369_672),
        (nvg_d20, 496_602_912, 124_972_808),
        (nvg_d24, 856_271_392, 215_176_712),
    ],
)
def test_number_of_parameters_is_the_papers(config, content, structure):
    module = build_generator(config.get_config())
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(1, jnp.int32))
    assert _num_parameters(variables["params"]["content"]) == content
    assert _num_parameters(variables["params"]["structure"]) == structure
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_number_of_the_tokenizers_parameters_is_the_papers():
    module = build_tokenizer(nvg_d16.get_config())
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))["params"]
    assert _num_parameters(params["encoder"]) == 45_025_696
    assert _num_parameters(params["decoder"]) == 65_092_355
    assert _num_parameters(params["quantizer"]) == 214_304


def test_bfloat16_is_close_to_float32_and_gives_float32(random_variables):
    module = Generator(
        depth=2,
        content_width=128,
        content_heads=2,
        structure_width=64,
        structure_heads=1,
        grid=(4, 4),
        latent_channels=8,
        vocab_size=16,
        num_classes=3,
    )
    key, class_id = jax.random.key(0), jnp.array([0, 3])
    variables = random_variables(module, class_id)
    canvas, noisy = jax.random.normal(key, (2, 16, 8)), jax.random.normal(key, (2, 16, 4))
    structure, stage = jnp.tile(jnp.arange(16), (2, 1)), jnp.array([1, 2])
    scales, time = jnp.ones(6), jnp.array([0.2, 0.9])

    def run(module):
        predict = functools.partial(module.apply, method="predict_canvas")
        velocity = functools.partial(module.apply, method="velocity")
        return jax.jit(
            lambda variables: (
                predict(variables, canvas, structure, stage, class_id, scales),
                velocity(variables, noisy, canvas, structure, stage, time, class_id),
            )
        )(variables)

    for full, half in zip(run(module), run(module.clone(dtype=jnp.bfloat16)), strict=True):
        assert half.dtype == jnp.float32
        assert 0 < jnp.abs(half - full).mean() < 0.02 * jnp.abs(full).mean()


def test_architecture_tells_generators_apart(golden_generator):
    module = golden_generator.module
    variants = [
        module.clone(depth=3),
        module.clone(content_heads=1),
        module.clone(structure_width=128),
        module.clone(grid=(4, 4)),
        module.clone(vocab_size=128),
        module.clone(num_classes=11),
    ]
    assert len({variant.architecture for variant in [module, *variants]}) == 7
    # How it is computed is no part of what a checkpoint has to agree with.
    same = module.clone(drop_path=0.1, remat=True, dtype=jnp.bfloat16)
    assert same.architecture == module.architecture
