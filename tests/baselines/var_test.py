"""The laws of VAR: its pyramid, what its tokens look at, and that caching changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import var_digits
from nvg_jax.baselines.var import sampler
from nvg_jax.baselines.var.generator import build_var_generator
from nvg_jax.baselines.var.tokenizer import (
    PyramidQuantizer,
    PyramidTokenizer,
    build_pyramid_tokenizer,
    shrink,
)
from nvg_jax.errors import UserError
from nvg_jax.generator.settings import Settings

SCALES = (1, 2, 3, 4)
STARTS = np.cumsum([0, *np.square(SCALES)])


@pytest.fixture(scope="module")
def small(random_variables):
    """A tokenizer and a generator on 4 x 4 positions, with their variables."""
    config = var_digits.get_config()
    config.data.image_size, config.data.num_classes = 8, 3
    model = config.tokenizer.model
    model.multipliers, model.latent_channels, model.vocab_size = (1, 1), 4, 16
    model = config.generator.model
    model.depth, model.content_width, model.content_heads = 2, 32, 1
    tokenizer, generator = build_pyramid_tokenizer(config), build_var_generator(config)
    made = [random_variables(module.init_variables) for module in (tokenizer, generator)]
    made[1] = jax.tree.map(lambda x: 3 * x, made[1])  # So that what is looked at shows.
    made[0]["stats"]["quantizer"]["canvas_scales"] = jnp.linspace(1, 2, len(SCALES) + 1)
    return tokenizer, generator, *made


@pytest.fixture(scope="module")
def logits_of(small):
    """The logits of all tokens in one pass, from what the network takes of the canvases."""
    _, generator, _, variables = small
    params = {"params": variables["params"]["transformer"]}
    return jax.jit(lambda inputs, class_id: generator.network.apply(params, inputs, class_id))


def test_brushes_sum_to_the_quantized_latent_and_tokens_say_it_all(small):
    tokenizer, _, variables, _ = small
    images = jax.random.uniform(jax.random.key(2), (3, 8, 8, 3), minval=-1.0)

    @jax.jit
    def run(images):
        sequence, canvases = tokenizer.apply(variables, images, method="tokenize")
        brushes = [
            tokenizer.apply(variables, tokens, None, scale, method="brush")
            for scale, tokens in enumerate(tokenizer.by_stage(sequence.tokens))
        ]
        again = tokenizer.apply(variables, sequence, method="canvases")
        return sequence, canvases, again, jnp.stack(brushes, axis=1)

    sequence, canvases, again, brushes = run(images)
    assert sequence.structure is None and sequence.tokens.shape == (3, STARTS[-1])
    assert [x.shape[1] for x in tokenizer.by_stage(sequence.tokens)] == [1, 4, 9, 16]
    sums = np.cumsum(np.pad(brushes, ((0, 0), (1, 0), (0, 0), (0, 0))), axis=1)
    np.testing.assert_allclose(canvases, sums, atol=1e-5)
    np.testing.assert_allclose(again, canvases, atol=1e-5)


def test_one_scale_as_large_as_the_grid_is_plain_vector_quantization():
    quantizer = PyramidQuantizer(16, 4, (4, 4), scales=(4,))
    latent = jax.random.normal(jax.random.key(0), (2, 16, 4))
    variables = jax.jit(quantizer.init)(jax.random.key(1), latent, None)
    params = variables["params"] | {"refiner_kernel": jnp.zeros((1, 3, 3, 4, 4))}
    found = jax.jit(quantizer.apply)(variables | {"params": params}, latent, None)
    codebook = np.asarray(params["codebook"])
    distance = np.square(np.asarray(latent)[:, :, None] - codebook).sum(-1)
    np.testing.assert_array_equal(found.tokens, distance.argmin(-1))
    np.testing.assert_allclose(found.canvases[:, 1], codebook[distance.argmin(-1)], atol=1e-6)


def test_shrinking_keeps_the_mean_and_equal_cells():
    values = jax.random.normal(jax.random.key(0), (2, 64, 3))
    for side in (1, 2, 3, 5, 8):
        cells = shrink(values, (8, 8), side)
        np.testing.assert_allclose(cells.mean(1), values.mean(1), atol=1e-6)
    quarters = values.reshape(2, 2, 4, 2, 4, 3).mean((2, 4)).reshape(2, 4, 3)
    np.testing.assert_allclose(shrink(values, (8, 8), 2), quarters, atol=1e-6)
    np.testing.assert_allclose(shrink(values, (8, 8), 8), values, atol=1e-6)
    # The middle of three cells on a line of eight: 8/3 parts, of which it has two and two thirds.
    line = jnp.broadcast_to(jnp.arange(8.0)[None, None, :, None], (1, 8, 8, 1)).reshape(1, 64, 1)
    expected = (2 / 6 * 2 + 3 + 4 + 2 / 6 * 5) / (8 / 3)
    np.testing.assert_allclose(shrink(line, (8, 8), 3)[0, 1, 0], expected, rtol=1e-5)


def test_no_logits_depend_on_later_scales_and_all_on_their_own(logits_of):
    inputs = jax.random.normal(jax.random.key(3), (2, STARTS[-1] - 1, 4))
    class_id = jnp.array([0, 2])
    before = np.asarray(logits_of(inputs, class_id))
    for scale in range(1, len(SCALES)):
        tokens = slice(STARTS[scale] - 1, STARTS[scale + 1] - 1)  # The class token has no input.
        changed = np.asarray(logits_of(inputs.at[:, tokens.start].add(1.0), class_id))
        differs = np.abs(changed - before).max(axis=(0, 2)) > 1e-6
        assert not differs[: STARTS[scale]].any()
        assert differs[STARTS[scale] :].all()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_cached_sampling_is_the_likeliest_of_one_pass_over_what_was_drawn(
    small, logits_of, guidance
):
    tokenizer, generator, tokenizer_variables, variables = small
    class_id = jnp.array([0, 1, 2, 1])
    sequence = sampler.sample(
        tokenizer,
        generator,
        Settings(content_guidance=(guidance, guidance), temperature=0.0),
        tokenizer_variables,
        variables,
        class_id,
        jax.random.split(jax.random.key(4), 4),
    )
    paint = jax.jit(functools.partial(tokenizer.apply, method="canvases"))
    canvases = paint(tokenizer_variables, sequence)
    scales = tokenizer_variables["stats"]["quantizer"]["canvas_scales"]
    inputs = generator.inputs(canvases, scales)
    logits, without = (logits_of(inputs, x) for x in (class_id, jnp.full_like(class_id, 3)))
    logits = np.asarray(without + guidance * (logits - without))
    drawn = np.take_along_axis(logits, np.asarray(sequence.tokens)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(drawn, logits.max(-1), rtol=1e-4, atol=1e-5)
    assert len(np.unique(sequence.tokens)) > 3


def test_a_sample_depends_on_its_class_and_key_alone(small):
    tokenizer, generator, tokenizer_variables, variables = small
    keys = jax.random.split(jax.random.key(5), 4)

    def sample(rows):
        given = (jnp.array([0, 1, 2, 1])[rows], keys[rows])
        settings = Settings(top_k=8)
        return sampler.sample(
            tokenizer, generator, settings, tokenizer_variables, variables, *given
        ).tokens

    together = sample(slice(None))
    np.testing.assert_array_equal(together[2:], sample(slice(2, None)))
    assert len(np.unique(together, axis=0)) == 4


def test_scales_have_to_rise_from_one_to_the_grid():
    config = var_digits.get_config()
    for scales in ((1, 2), (2, 4), (1, 3, 2, 4), (1, 2, 2, 4)):
        config.tokenizer.model.scales = scales
        with pytest.raises(UserError, match="scales.* from 1 to 4, the side of the latent"):
            build_pyramid_tokenizer(config)


def test_architectures_tell_var_from_the_method(small):
    tokenizer, generator, *_ = small
    assert isinstance(tokenizer, PyramidTokenizer)
    assert tokenizer.architecture.startswith("VAR's tokenizer(image 8")
    assert tokenizer.architecture.endswith("codebook 16, scales 1,2,3,4)")
    other = generator.begun_as(generator.architecture.replace("3 classes", "7 classes"))
    assert other.sizes.num_classes == 7
