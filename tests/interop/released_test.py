import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from nvg_jax import sharding
from nvg_jax.errors import UserError
from nvg_jax.interop import released


def _specs(variables):
    """Path, shape and dtype of every leaf."""
    flat = traverse_util.flatten_dict(variables, sep="/")
    return {path: (leaf.shape, np.dtype(leaf.dtype)) for path, leaf in flat.items()}


@pytest.fixture
def tokenizer(golden_tokenizer):
    return golden_tokenizer.module


@pytest.fixture
def generator(golden_generator):
    return golden_generator.module


@pytest.fixture
def tokenizer_dict(golden_tokenizer):
    return dict(golden_tokenizer.state_dict)


@pytest.fixture
def generator_dict(golden_generator):
    return dict(golden_generator.state_dict)


SCALES = np.linspace(1, 2, 6)


def test_variables_are_those_of_the_modules(tokenizer, tokenizer_dict, generator, generator_dict):
    images, key = jnp.zeros((1, 64, 64, 3)), jax.random.key(0)
    converted = released.tokenizer_variables(tokenizer_dict, tokenizer, SCALES)
    assert _specs(converted) == _specs(
        sharding.unnamed(jax.eval_shape(tokenizer.init, key, images))
    )
    converted = released.generator_variables(generator_dict, generator)
    class_id = jnp.zeros(1, jnp.int32)
    assert _specs(converted) == _specs(
        sharding.unnamed(jax.eval_shape(generator.init, key, class_id))
    )


def test_kernels_are_transposed_and_blocks_stacked(generator, generator_dict):
    params = released.generator_variables(generator_dict, generator)["params"]
    for index in range(2):
        expected = generator_dict[f"nvgformer.content_blocks.{index}.linear1.weight"].T
        actual = params["content"]["stack"]["blocks"]["linear1"]["kernel"][index]
        np.testing.assert_array_equal(actual.reshape(expected.shape), expected)


def test_what_is_not_needed_is_ignored(tokenizer, tokenizer_dict, generator, generator_dict):
    extra = np.zeros(3)
    expected = released.tokenizer_variables(tokenizer_dict, tokenizer, SCALES)
    tokenizer_dict |= {"loss.discriminator.weight": extra, "total_visited_codes": extra}
    actual = released.tokenizer_variables(tokenizer_dict, tokenizer, SCALES)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)

    expected = released.generator_variables(generator_dict, generator)
    generator_dict |= {
        "first_stage_model.encoder.conv_in.conv.weight": extra,
        "repa_encoder.blocks.0.norm1.weight": extra,
        "nvgformer.projector.0.weight": extra,
    }
    actual = released.generator_variables(generator_dict, generator)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_moving_averages_are_preferred(generator, generator_dict):
    averaged = {f"ema_model.{name}": tensor + 1 for name, tensor in generator_dict.items()}
    expected = released.generator_variables(generator_dict, generator)
    actual = released.generator_variables(generator_dict | averaged, generator)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b + 1, atol=1e-2), actual, expected)
    np.testing.assert_allclose(
        released.canvas_scales_of(generator_dict | averaged),
        released.PUBLISHED_CANVAS_SCALES + 1,
        atol=1e-2,
    )


def test_moving_averages_are_not_mixed_with_other_weights(generator, generator_dict):
    name = "nvgformer.content_embed.bias"
    averaged = {f"ema_model.{name}": tensor for name, tensor in generator_dict.items()}
    del averaged[f"ema_model.{name}"]
    with pytest.raises(UserError, match=f"{name} is missing"):
        released.generator_variables(generator_dict | averaged, generator)


def test_every_tensor_that_does_not_fit_is_named(tokenizer, tokenizer_dict):
    del tokenizer_dict["decoder.up.2.block.0.nin_shortcut.conv.weight"]
    del tokenizer_dict["quantize.quant_resi.3.bias"]
    tokenizer_dict["encoder.mid.attn_1.q.weight"] = np.zeros((64, 64, 1, 1))
    tokenizer_dict["encoder.conv_in.conv.weight"] = np.zeros((32, 3, 5, 5))
    tokenizer_dict["quantize.embedding.weight"] = np.float32(0)
    with pytest.raises(UserError) as error:
        released.tokenizer_variables(tokenizer_dict, tokenizer, SCALES)
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "decoder.up.2.block.0.nin_shortcut.conv.weight is missing",
        "quantize.quant_resi.3.bias is missing",
        "encoder.mid.attn_1.q.weight is not expected",
        "encoder.conv_in.conv.weight is [32, 3, 5, 5], not [32, 3, 3, 3]",
        "quantize.embedding.weight is [], not [64, 32]",
    ):
        assert part in message
    assert message.count(";") == 4


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"depth": 1}, "nvgformer.structure_blocks.1.linear2.bias is not expected"),
        ({"depth": 3}, "nvgformer.content_blocks.2.norm.key_norm.scale is missing"),
        ({"num_classes": 9}, r"content_class_embed.weight is \[11, 128\], not \[10, 128\]"),
        ({"grid": (8, 8)}, r"content_start_embed is \[1, 256, 32\], not \[1, 64, 32\]"),
    ],
)
def test_another_generator_is_refused(generator, generator_dict, change, problem):
    with pytest.raises(UserError, match=problem):
        released.generator_variables(generator_dict, generator.clone(**change))


def test_canvas_scales_come_from_the_generator_or_are_the_published_ones(
    golden_generator_tokenizer, tokenizer, tokenizer_dict, generator_dict
):
    np.testing.assert_allclose(
        released.canvas_scales_of(generator_dict), released.PUBLISHED_CANVAS_SCALES, rtol=1e-3
    )
    variables = released.tokenizer_variables(tokenizer_dict, tokenizer, SCALES)
    np.testing.assert_array_equal(
        variables["stats"]["quantizer"]["canvas_scales"], np.float32(SCALES)
    )

    full_size = golden_generator_tokenizer
    variables = released.tokenizer_variables(full_size.state_dict, full_size.module)
    np.testing.assert_array_equal(
        variables["stats"]["quantizer"]["canvas_scales"], released.PUBLISHED_CANVAS_SCALES
    )
    with pytest.raises(UserError, match="10 canvas scales do not fit the 6 canvases"):
        released.tokenizer_variables(tokenizer_dict, tokenizer)
    del generator_dict["nvgformer.scale_factors"]
    with pytest.raises(UserError, match="no tensor nvgformer.scale_factors"):
        released.canvas_scales_of(generator_dict)
