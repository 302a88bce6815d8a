"""What the golden arrays do not pin down by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax.tokenizer import autoencoder
from nvg_jax.tokenizer.autoencoder import Decoder, Encoder


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 1, 2)])
def test_decoder_undoes_the_encoders_downsampling(multipliers):
    images = jnp.zeros((2, 16, 16, 3))
    encoder, decoder = (
        Encoder(32, multipliers, 1, 32, 4, "float32"),
        Decoder(32, multipliers, 1, 32, "float32"),
    )
    factor = autoencoder.downsampling(multipliers)
    latent, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), images)
    assert latent.shape == (2, 16 // factor, 16 // factor, 4)
    output, _ = jax.eval_shape(decoder.init_with_output, jax.random.key(0), latent)
    assert output.shape == images.shape


def test_output_is_clipped_to_the_range_of_images():
    clipped = autoencoder.clip_to_image(jnp.array([-3.0, -1.0, 0.25, 1.0, 2.0]))
    np.testing.assert_array_equal(clipped, [-1.0, -1.0, 0.25, 1.0, 1.0])
