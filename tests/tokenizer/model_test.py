import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from nvg_jax import granularity, pixels
from nvg_jax.tokenizer import inference


def _relative_error(actual, expected):
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


def _channels_last(array):
    return rearrange(array, "b c h w -> b h w c")


@pytest.fixture(scope="module")
def outputs(golden_tokenizer):
    """What every method gives, in one compilation."""
    module, variables = golden_tokenizer.module, golden_tokenizer.variables

    def method(name, *args):
        return module.apply(variables, *args, method=name)

    @jax.jit
    def run(images):
        sequence, canvases = method("tokenize", images)
        return {
            "latent": method("encode", images),
            "reconstruction": method("__call__", images),
            "sequence": sequence,
            "canvases": canvases,
            "rebuilt_canvases": method("canvases", sequence),
            "decoded_canvas": method("decode", canvases[:, -1]),
        }

    return run(jnp.asarray(_channels_last(golden_tokenizer.arrays["image"])))


def test_encoder_reproduces_the_reference_latent(golden_tokenizer, outputs):
    expected = rearrange(golden_tokenizer.arrays["latent"], "b c h w -> b (h w) c")
    assert _relative_error(outputs["latent"], expected) < 1e-4


def test_every_label_and_token_is_the_reference_one(golden_tokenizer, outputs):
    arrays, (structure, heap) = golden_tokenizer.arrays, outputs["sequence"]
    for stage in range(golden_tokenizer.module.last_stage + 1):
        labels = granularity.labels_at(structure, stage)
        tokens = granularity.stage_tokens(heap, stage)
        painted = jnp.take_along_axis(tokens, labels, axis=1)
        np.testing.assert_array_equal(labels, arrays["labels"][:, stage])
        np.testing.assert_array_equal(painted, arrays["tokens"][:, stage])
        np.testing.assert_array_equal(tokens.ravel(), arrays[f"stage_indices.{stage}"])


def test_canvases_and_loss_are_the_reference_ones(golden_tokenizer, outputs):
    arrays, quantized = golden_tokenizer.arrays, outputs["reconstruction"].quantized
    expected = rearrange(arrays["quantized"], "b c h w -> b (h w) c")
    assert _relative_error(quantized.canvases[:, :-1], arrays["canvas"]) < 1e-4
    assert _relative_error(quantized.canvases[:, -1], arrays["final_canvas"]) < 1e-4
    assert _relative_error(quantized.latent, expected) < 1e-4
    np.testing.assert_allclose(quantized.loss, arrays["vq_loss"], rtol=1e-4)


def test_decoder_reproduces_the_reference_image_once_clipped(golden_tokenizer, outputs):
    expected = _channels_last(golden_tokenizer.arrays["reconstruction"])
    unclipped = outputs["reconstruction"].images
    assert jnp.abs(unclipped).max() > 1  # Training sees what is beyond the range.
    assert _relative_error(jnp.clip(unclipped, -1, 1), expected) < 1e-4
    assert _relative_error(outputs["decoded_canvas"], expected) < 1e-4


def test_sequence_holds_all_that_the_canvases_need(outputs):
    structure, tokens = outputs["sequence"]
    assert structure.dtype == tokens.dtype == jnp.int32
    assert tokens.shape == (len(tokens), 2 * structure.shape[1] - 1)
    quantized = outputs["reconstruction"].quantized
    np.testing.assert_array_equal(structure, outputs["reconstruction"].structure)
    np.testing.assert_array_equal(tokens, quantized.tokens)
    np.testing.assert_allclose(outputs["canvases"], quantized.canvases, atol=1e-6)
    np.testing.assert_allclose(outputs["rebuilt_canvases"], quantized.canvases, atol=1e-6)


def test_brush_strokes_add_up_to_the_canvas(golden_tokenizer, outputs):
    module, variables = golden_tokenizer.module, golden_tokenizer.variables
    structure, heap = outputs["sequence"]

    @jax.jit
    def brush(tokens, labels, stage):
        return module.apply(variables, tokens, labels, stage, method="brush")

    canvas = 0.0
    for stage in range(module.last_stage + 1):
        tokens = granularity.stage_tokens(heap, stage)
        canvas += brush(tokens, granularity.labels_at(structure, stage), jnp.int32(stage))
        np.testing.assert_allclose(canvas, outputs["canvases"][:, stage + 1], atol=1e-6)


def test_architecture_tells_tokenizers_apart(golden_tokenizer):
    tokenizer = golden_tokenizer.module
    variants = [
        tokenizer.clone(width=2 * tokenizer.width),
        tokenizer.clone(multipliers=(*tokenizer.multipliers[:-1], 5)),
        tokenizer.clone(num_blocks=tokenizer.num_blocks + 1),
        tokenizer.clone(image_size=2 * tokenizer.image_size),
        tokenizer.clone(vocab_size=2 * tokenizer.vocab_size),
        tokenizer.clone(latent_channels=16),
    ]
    assert len({module.architecture for module in [tokenizer, *variants]}) == 7


def test_sequences_and_images_are_those_of_the_methods(golden_tokenizer, outputs):
    module, variables, _, arrays = golden_tokenizer
    images = jnp.asarray(_channels_last(arrays["image"]))
    sequence = inference.sequences_of(module, variables, images)
    jax.tree.map(np.testing.assert_array_equal, sequence, outputs["sequence"])
    decoded = inference.images_of(module, variables, sequence)
    stages = inference.stage_images_of(module, variables, sequence)
    assert decoded.dtype == stages.dtype == jnp.uint8
    expected = pixels.to_uint8(outputs["decoded_canvas"]).astype(int)
    np.testing.assert_allclose(decoded.astype(int), expected, atol=1)
    np.testing.assert_allclose(stages[:, -1].astype(int), expected, atol=1)
