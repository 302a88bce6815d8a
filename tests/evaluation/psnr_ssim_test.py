"""PSNR, SSIM and codebook usage against plain NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
from scipy import ndimage

from nvg_jax import granularity
from nvg_jax.errors import UserError
from nvg_jax.evaluation.metrics.codebook_usage import CodebookUsage
from nvg_jax.evaluation.metrics.psnr import psnr
from nvg_jax.evaluation.metrics.ssim import ssim as eager_ssim

seeds = st.integers(0, 2**32 - 1)
ssim = jax.jit(eager_ssim)


def test_psnr_equals_the_definition_on_8_bit_values():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 3, 8, 4, 3))
    mse = ((a - b) ** 2).mean(axis=(1, 2, 3))
    expected = 10 * np.log10(255**2 / mse)
    images, reconstructions = jnp.asarray(a / 127.5 - 1), jnp.asarray(b / 127.5 - 1)
    actual = jax.jit(psnr)(images, reconstructions)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert actual.dtype == jnp.float32


def test_psnr_is_infinite_for_identical_images_only():
    images = jnp.full((2, 4, 4, 3), 0.25)
    reconstructions = images.at[1, 0, 0, 0].set(0.5)
    actual = psnr(images, reconstructions)
    assert np.isposinf(actual[0]) and np.isfinite(actual[1])


def test_psnr_keeps_float32_precision_of_bfloat16_reconstructions():
    images = jnp.full((1, 4, 4, 3), 0.5)
    reconstructions = jnp.full((1, 4, 4, 3), 0.5625, jnp.bfloat16)  # exact in bfloat16
    actual = psnr(images.astype(jnp.bfloat16), reconstructions)
    np.testing.assert_allclose(actual, 20 * np.log10(2 / 0.0625), rtol=1e-6)


def ssim_reference(images, reconstructions):
    """On 8-bit intensities, in float64."""
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def smooth(x):
        return ndimage.correlate(x, window[None, :, :, None])[:, 5:-5, 5:-5]

    a, b = ((np.asarray(x, np.float64) + 1) * 127.5 for x in (images, reconstructions))
    mean_a, mean_b = smooth(a), smooth(b)
    variance_a, variance_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * structure).mean(axis=(1, 2, 3))


@given(seeds, st.floats(-1, 1), st.sampled_from([0.0, 1e-4, 1e-2, 0.5]), st.floats(0, 0.3))
def test_ssim_equals_the_definition(seed, brightness, contrast, noise):
    rng = np.random.default_rng(seed)
    images = brightness + contrast * rng.normal(size=(3, 17, 24, 2))
    reconstructions = images + noise * rng.normal(size=images.shape)
    pair = [np.clip(x, -1, 1).astype(np.float32) for x in (images, reconstructions)]
    actual = ssim(*map(jnp.asarray, pair))
    np.testing.assert_allclose(actual, ssim_reference(*pair), rtol=0, atol=1e-4)


@given(seeds, st.floats(-1, 1), st.sampled_from([0.0, 1e-4, 0.5]))
def test_ssim_of_identical_images_is_one(seed, brightness, contrast):
    noise = np.random.default_rng(seed).normal(size=(3, 17, 24, 2))
    images = jnp.asarray(np.clip(brightness + contrast * noise, -1, 1), jnp.float32)
    np.testing.assert_array_equal(ssim(images, images), np.ones(3))


@pytest.mark.parametrize("shade", [-1.0, -0.3, 0.0, 0.7, 1.0])
def test_ssim_of_flat_images_compares_their_brightness(shade):
    images, reconstructions = np.full((1, 11, 11, 3), shade), np.full((1, 11, 11, 3), -0.5)
    actual = ssim(jnp.asarray(images), jnp.asarray(reconstructions))
    np.testing.assert_allclose(actual, ssim_reference(images, reconstructions), rtol=0, atol=1e-4)


def test_ssim_takes_bfloat16_and_gives_float32():
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)), jnp.bfloat16)
    actual = ssim(images.astype(jnp.float32), images)
    assert actual == 1 and actual.dtype == jnp.float32


@pytest.mark.parametrize("size", [(10, 32), (32, 10), (8, 8)])
def test_ssim_refuses_images_smaller_than_its_window(size):
    images = jnp.zeros((1, *size, 3))
    with pytest.raises(UserError, match=f"11 x 11 .* images of {size[0]} x {size[1]} pixels"):
        ssim(images, images)


@given(seeds, st.sampled_from([8, 40]), st.sampled_from([1, 3]))
def test_usage_agrees_with_the_set_of_codes(seed, vocab_size, num_parts):
    tokens = np.random.default_rng(seed).integers(0, vocab_size, (3, 15), np.int32)
    metric = CodebookUsage(ConfigDict({"tokenizer": {"model": {"vocab_size": vocab_size}}}), 0)
    for part in np.split(tokens, num_parts):
        metric.update(granularity.by_stage(part))
    overall, by_stage = metric.shares()
    assert overall == len(np.unique(tokens)) / vocab_size
    for stage, share in enumerate(by_stage):
        codes = tokens[:, 2**stage - 1 : 2 ** (stage + 1) - 1]
        assert share == len(np.unique(codes)) / vocab_size
