import jax
import numpy as np
import pytest
from flax import traverse_util

from nvg_jax import sharding
from nvg_jax.errors import UserError
from nvg_jax.interop import released
from nvg_jax.tokenizer.model import canvas_scales


def _specs(variables):
    """Path, shape and dtype of every leaf."""
    flat = traverse_util.flatten_dict(variables, sep="/")
    return {path: (leaf.shape, np.dtype(leaf.dtype)) for path, leaf in flat.items()}


def _abstract(module):
    key = jax.random.key(0)
    return sharding.unnamed(jax.eval_shape(module.init_variables, key))


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


@pytest.fixture
def scales(tokenizer):
    return np.linspace(1, 2, tokenizer.last_stage + 2)


def test_variables_are_those_of_the_modules(
    tokenizer, tokenizer_dict, scales, generator, generator_dict
):
    converted = released.tokenizer_variables(tokenizer_dict, tokenizer, scales)
    assert _specs(converted) == _specs(_abstract(tokenizer))
    converted = released.generator_variables(generator_dict, generator)
    assert _specs(converted) == _specs(_abstract(generator))


def test_kernels_are_transposed_and_blocks_stacked(generator, generator_dict):
    params = released.generator_variables(generator_dict, generator)["params"]
    kernels = params["content"]["stack"]["blocks"]["linear1"]["kernel"]
    for index, actual in enumerate(kernels):
        expected = generator_dict[f"nvgformer.content_blocks.{index}.linear1.weight"].T
        np.testing.assert_array_equal(actual.reshape(expected.shape), expected)


def test_what_is_not_needed_is_ignored(
    tokenizer, tokenizer_dict, scales, generator, generator_dict
):
    extra = np.zeros(3)
    expected = released.tokenizer_variables(tokenizer_dict, tokenizer, scales)
    tokenizer_dict |= {"loss.discriminator.weight": extra, "total_visited_codes": extra}
    actual = released.tokenizer_variables(tokenizer_dict, tokenizer, scales)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)

    expected = released.generator_variables(generator_dict, generator)
    generator_dict |= {
        "first_stage_model.encoder.conv_in.conv.weight": extra,
        "repa_encoder.blocks.0.norm1.weight": extra,
        "nvgformer.projector.0.weight": extra,
    }
    actual = released.generator_variables(generator_dict, generator)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_the_tokenizer_is_made_of_its_raw_weights(tokenizer, tokenizer_dict, scales):
    averaged = {f"ema_model.{name}": tensor + 1 for name, tensor in tokenizer_dict.items()}
    expected = released.tokenizer_variables(tokenizer_dict, tokenizer, scales)
    actual = released.tokenizer_variables(averaged | tokenizer_dict, tokenizer, scales)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    with pytest.raises(UserError, match="is no tokenizer: no encoder.* or .* is in it"):
        released.tokenizer_variables(averaged, tokenizer, scales)


def test_a_generators_averages_are_preferred_and_not_mixed_with_others(generator, generator_dict):
    averaged = {f"ema_model.{name}": tensor + 1 for name, tensor in generator_dict.items()}
    expected = released.generator_variables(generator_dict, generator)
    actual = released.generator_variables(generator_dict | averaged, generator)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b + 1, atol=1e-2), actual, expected)
    np.testing.assert_allclose(
        released.canvas_scales_of(generator_dict | averaged),
        released.canvas_scales_of(generator_dict) + 1,
        atol=1e-2,
    )
    name = "nvgformer.content_embed.bias"
    del averaged[f"ema_model.{name}"]
    with pytest.raises(UserError, match=f"{name} is missing"):
        released.generator_variables(generator_dict | averaged, generator)
    with pytest.raises(UserError, match="is no generator: no nvgformer.* is in it"):
        released.generator_variables({"encoder.conv_in.conv.bias": np.zeros(3)}, generator)


def test_every_tensor_that_does_not_fit_is_named(tokenizer, tokenizer_dict, scales):
    conv, codebook = "encoder.conv_in.conv.weight", "quantize.embedding.weight"
    shapes = {name: list(tokenizer_dict[name].shape) for name in (conv, codebook)}
    shortcut = next(name for name in tokenizer_dict if name.endswith("nin_shortcut.conv.weight"))
    del tokenizer_dict[shortcut]
    del tokenizer_dict["quantize.quant_resi.3.bias"]
    tokenizer_dict["encoder.mid.attn_1.q.weight"] = np.zeros((64, 64, 1, 1))
    tokenizer_dict[conv] = np.zeros((32, 3, 5, 5))
    tokenizer_dict[codebook] = np.float32(0)
    with pytest.raises(UserError) as error:
        released.tokenizer_variables(tokenizer_dict, tokenizer, scales)
    message = str(error.value)
    assert "\n" not in message
    for part in (
        f"{shortcut} is missing",
        "quantize.quant_resi.3.bias is missing",
        "encoder.mid.attn_1.q.weight is not expected",
        f"{conv} is [32, 3, 5, 5], not {shapes[conv]}",
        f"{codebook} is [], not {shapes[codebook]}",
    ):
        assert part in message
    assert message.count(";") == 4


def test_another_generator_is_refused(golden_generator):
    """One of another depth, of other classes, of another grid."""
    generator, _, tensors, arrays = golden_generator
    deeper = f"nvgformer.structure_blocks.{arrays['config.depth']}.linear2.bias"
    last = f"nvgformer.content_blocks.{arrays['config.depth'] - 1}.norm.key_norm.scale"
    for name, tensor, problem in (
        (deeper, np.zeros(3), "is not expected"),
        (last, None, "is missing"),
        ("nvgformer.content_class_embed.weight", np.zeros((5, 3)), r"is \[5, 3\], not"),
        ("nvgformer.content_start_embed", np.zeros((1, 8, 3)), r"is \[1, 8, 3\], not"),
    ):
        changed = {key: value for key, value in tensors.items() if key != name}
        changed |= {} if tensor is None else {name: tensor}
        with pytest.raises(UserError, match=f"{name} {problem}"):
            released.generator_variables(changed, generator)


def test_canvas_scales_come_from_the_generator_or_are_the_published_ones(
    full_size, tokenizer, tokenizer_dict, scales, generator_dict
):
    of_generator = released.canvas_scales_of(generator_dict)
    np.testing.assert_array_equal(of_generator, generator_dict["nvgformer.scale_factors"])
    published = released.PUBLISHED_CANVAS_SCALES
    if len(of_generator) == len(published):
        np.testing.assert_allclose(of_generator, published, rtol=1e-3)
    variables = released.tokenizer_variables(tokenizer_dict, tokenizer, scales)
    np.testing.assert_array_equal(canvas_scales(variables), np.float32(scales))

    variables = released.tokenizer_variables(full_size.state_dict, full_size.module)
    np.testing.assert_array_equal(canvas_scales(variables), published)
    with pytest.raises(UserError, match=f"{len(scales)} canvas scales do not fit the 10 canvases"):
        released.tokenizer_variables(full_size.state_dict, full_size.module, scales)
    del generator_dict["nvgformer.scale_factors"]
    with pytest.raises(UserError, match="no tensor nvgformer.scale_factors"):
        released.canvas_scales_of(generator_dict)
