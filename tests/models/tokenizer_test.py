import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from nvg_jax import granularity


def _relative_error(actual, expected):
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


def _channels_last(array):
    return rearrange(array, "b c h w -> b h w c")


@pytest.fixture(scope="module")
def reconstruction(golden_tokenizer):
    images = jnp.asarray(_channels_last(golden_tokenizer.arrays["image"]))
    return jax.jit(golden_tokenizer.module.apply)(golden_tokenizer.variables, images)


def test_encoder_reproduces_the_reference_latent(golden_tokenizer):
    tokenizer, variables, _, arrays = golden_tokenizer
    latent = tokenizer.apply(variables, jnp.asarray(_channels_last(arrays["image"])), method="encode")
    expected = rearrange(arrays["latent"], "b c h w -> b (h w) c")
    assert _relative_error(latent, expected) < 1e-4


def test_every_label_and_token_is_the_reference_one(golden_tokenizer, reconstruction):
    arrays = golden_tokenizer.arrays
    for stage in range(golden_tokenizer.module.last_stage + 1):
        labels = granularity.labels_at(reconstruction.structure, stage)
        tokens = granularity.stage_tokens(reconstruction.quantized.tokens, stage)
        painted = jnp.take_along_axis(tokens, labels, axis=1)
        np.testing.assert_array_equal(labels, arrays["labels"][:, stage])
        np.testing.assert_array_equal(painted, arrays["tokens"][:, stage])
        np.testing.assert_array_equal(tokens.ravel(), arrays[f"stage_indices.{stage}"])


def test_canvases_and_loss_are_the_reference_ones(golden_tokenizer, reconstruction):
    arrays, quantized = golden_tokenizer.arrays, reconstruction.quantized
    expected = rearrange(arrays["quantized"], "b c h w -> b (h w) c")
    assert _relative_error(quantized.canvases[:, :-1], arrays["canvas"]) < 1e-4
    assert _relative_error(quantized.canvases[:, -1], arrays["final_canvas"]) < 1e-4
    assert _relative_error(quantized.latent, expected) < 1e-4
    np.testing.assert_allclose(quantized.loss, arrays["vq_loss"], rtol=1e-4)


def test_decoder_reproduces_the_reference_image_once_clipped(golden_tokenizer, reconstruction):
    tokenizer, variables, _, arrays = golden_tokenizer
    expected = _channels_last(arrays["reconstruction"])
    decoded = tokenizer.apply(
        variables, reconstruction.quantized.canvases[:, -1], method="decode"
    )
    assert _relative_error(decoded, expected) < 1e-4
    assert _relative_error(jnp.clip(reconstruction.images, -1, 1), expected) < 1e-4
    assert jnp.abs(reconstruction.images).max() > 1  # Training sees what is beyond the range.


def test_sequence_holds_all_that_the_image_needs(golden_tokenizer, reconstruction):
    tokenizer, variables, _, arrays = golden_tokenizer
    images = jnp.asarray(_channels_last(arrays["image"]))
    sequence, canvases = tokenizer.apply(variables, images, method="tokenize")
    assert sequence.structure.dtype == sequence.tokens.dtype == jnp.int32
    assert sequence.tokens.shape == (2, 31)
    rebuilt = tokenizer.apply(variables, sequence, method="canvases")
    np.testing.assert_allclose(rebuilt, canvases, atol=1e-6)
    decoded = tokenizer.apply(variables, sequence, method="decode_sequence")
    np.testing.assert_allclose(decoded, jnp.clip(reconstruction.images, -1, 1), atol=1e-4)


def test_brush_strokes_add_up_to_the_canvas(golden_tokenizer, reconstruction):
    tokenizer, variables = golden_tokenizer.module, golden_tokenizer.variables
    canvas = 0.0
    for stage in range(tokenizer.last_stage + 1):
        canvas += tokenizer.apply(
            variables,
            granularity.stage_tokens(reconstruction.quantized.tokens, stage),
            granularity.labels_at(reconstruction.structure, stage),
            jnp.int32(stage),
            method="brush",
        )
    np.testing.assert_allclose(canvas, reconstruction.quantized.canvases[:, -1], atol=1e-6)


def test_gradient_of_the_image_passes_straight_through_to_the_encoder(golden_tokenizer):
    tokenizer, variables, _, arrays = golden_tokenizer
    images = jnp.asarray(_channels_last(arrays["image"]))
    direction = jax.random.normal(jax.random.key(0), images.shape)

    @jax.jit
    def gradient(params):
        def loss(params):
            output = tokenizer.apply(variables | {"params": params}, images)
            return jnp.sum(output.images * direction)

        return jax.grad(loss)(params)

    @jax.jit
    def expected_bias_gradient(params):
        """That of the latent, were it decoded as it is, summed over positions."""
        output = tokenizer.apply(variables | {"params": params}, images)

        def loss(latent):
            decoded = tokenizer.apply(variables, latent, method=lambda m, z: m._decode(z))
            return jnp.sum(decoded * direction)

        return jax.grad(loss)(output.quantized.latent).sum(axis=(0, 1))

    params = variables["params"]
    actual = gradient(params)
    bias = actual["encoder"]["conv_out"]["bias"]
    np.testing.assert_allclose(bias, expected_bias_gradient(params), rtol=1e-3, atol=1e-2)
    assert not jnp.any(actual["quantizer"]["codebook"])  # It learns from the quantizer's loss.


def test_architecture_tells_tokenizers_apart(golden_tokenizer):
    tokenizer = golden_tokenizer.module
    variants = [
        tokenizer.clone(width=64),
        tokenizer.clone(multipliers=(1, 1, 1, 2, 1)),
        tokenizer.clone(num_blocks=2),
        tokenizer.clone(image_size=128),
        tokenizer.clone(vocab_size=128),
        tokenizer.clone(latent_channels=16),
    ]
    assert len({module.architecture for module in [tokenizer, *variants]}) == 7
