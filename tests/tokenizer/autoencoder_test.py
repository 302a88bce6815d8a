"""What the golden arrays do not pin down by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax.tokenizer import autoencoder
from nvg_jax.tokenizer.autoencoder import Arithmetic, Decoder, Encoder
from nvg_jax.training import flops


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 1, 2)])
def test_decoder_undoes_the_encoders_downsampling(multipliers):
    images = jnp.zeros((2, 16, 16, 3))
    encoder, decoder = (
        Encoder(32, multipliers, 1, 32, 4),
        Decoder(32, multipliers, 1, 32),
    )
    factor = autoencoder.downsampling(multipliers)
    latent, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), images)
    assert latent.shape == (2, 16 // factor, 16 // factor, 4)
    output, _ = jax.eval_shape(decoder.init_with_output, jax.random.key(0), latent)
    assert output.shape == images.shape


def test_output_is_clipped_to_the_range_of_images():
    clipped = autoencoder.clip_to_image(jnp.array([-3.0, -1.0, 0.25, 1.0, 2.0]))
    np.testing.assert_array_equal(clipped, [-1.0, -1.0, 0.25, 1.0, 1.0])


def _loss_and_gradient(arithmetic: Arithmetic):
    """Of an encoder and a decoder one after the other, with the gradient."""
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1.0)
    encoder = Encoder(32, (1, 2), 1, 8, 4, arithmetic)
    decoder = Decoder(32, (1, 2), 1, 8, arithmetic)

    def loss(params):
        latent = encoder.apply(params[0], images)
        output = decoder.apply(params[1], latent)
        assert latent.dtype == output.dtype == jnp.float32
        return jnp.mean((output - images) ** 2) + jnp.mean(latent**2)

    latent = jnp.zeros((2, 8, 8, 4))
    params = jax.jit(
        lambda: (encoder.init(jax.random.key(1), images), decoder.init(jax.random.key(2), latent))
    )()
    traced = jax.jit(jax.value_and_grad(loss)).trace(params)
    return traced, traced.lower().compile()(params)


@pytest.fixture(scope="module")
def exact():
    return _loss_and_gradient(Arithmetic())


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_computes_again_what_it_does_not_keep_and_gives_the_same(exact, remat):
    traced, found = _loss_and_gradient(Arithmetic(remat=remat))
    for expected, array in zip(jax.tree.leaves(exact[1]), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    added = flops.count(traced.jaxpr) / flops.count(exact[0].jaxpr)
    # A backward pass is twice the forward pass; it needs the result of each block's first
    # convolution, which "dots" keeps.
    assert 1.0 <= added < 1.01 if remat == "dots" else 1.1 < added < 1.2, added


def test_bfloat16_activations_change_little_and_keep_float32_parameters(exact):
    traced, (loss, gradient) = _loss_and_gradient(Arithmetic(dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    assert 0 < abs(loss - exact[1][0]) < 0.01 * exact[1][0]
    for expected, array in zip(
        jax.tree.leaves(exact[1][1]), jax.tree.leaves(gradient), strict=True
    ):
        assert np.linalg.norm(array - expected) < 0.05 * np.linalg.norm(expected) + 1e-6
    convolutions = [line for line in str(traced.jaxpr).splitlines() if "conv_general" in line]
    assert convolutions and all("bf16" in line for line in convolutions)
