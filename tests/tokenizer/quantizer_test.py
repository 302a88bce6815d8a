import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from nvg_jax.tokenizer.quantizer import Quantizer


def _raster(array):
    return jnp.asarray(rearrange(array, "b c h w -> b (h w) c"))


@pytest.fixture(scope="module")
def quantizer(golden_tokenizer):
    """The golden quantizer with its parameters, and the reference latent with its structure."""
    tokenizer, variables, _, arrays = golden_tokenizer
    module = Quantizer(tokenizer.vocab_size, tokenizer.latent_channels, tokenizer.grid)
    variables = {key: value["quantizer"] for key, value in variables.items()}
    structure = jnp.asarray(arrays["labels"][:, -1], jnp.int32)
    return module, variables, _raster(arrays["latent"]), structure


@pytest.fixture(scope="module")
def outputs(quantizer):
    """Usual and warm-up outputs, each with its gradients to latent and codebook."""
    module, variables, latent, structure = quantizer
    codebook = variables["params"]["codebook"]

    def loss(latent, codebook, codebook_warmup):
        params = variables["params"] | {"codebook": codebook}
        output = module.apply(variables | {"params": params}, latent, structure, codebook_warmup)
        return 0.1 * output.latent.sum() + output.loss, output

    run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    usual, no_warmup, warmup = (
        run(latent, codebook, flag) for flag in (None, jnp.array(False), jnp.array(True))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), usual, no_warmup)
    return usual, warmup


def test_gradients_are_the_reference_ones(golden_tokenizer, outputs):
    arrays = golden_tokenizer.arrays
    ((to_latent, to_codebook), _), _ = outputs
    expected = _raster(arrays["grad.latent"])
    np.testing.assert_allclose(to_latent, expected, atol=1e-4 * np.abs(expected).max())
    expected = arrays["grad.codebook"]
    np.testing.assert_allclose(to_codebook, expected, atol=1e-4 * np.abs(expected).max())


def test_warm_up_changes_no_number_but_gives_every_code_a_gradient(quantizer, outputs):
    ((_, usual_gradient), usual), ((_, warm_gradient), warm) = outputs
    np.testing.assert_array_equal(warm.tokens, usual.tokens)
    np.testing.assert_allclose(warm.canvases, usual.canvases, atol=1e-5)
    unused = np.setdiff1d(np.arange(quantizer[0].vocab_size), usual.tokens)
    assert unused.size
    assert not np.any(usual_gradient[unused])
    assert np.all(np.abs(warm_gradient).max(axis=-1) > 0)


def test_codes_are_the_nearest_ones_to_the_means_of_what_is_left(quantizer, outputs):
    module, variables, latent, structure = quantizer
    (_, output), _ = outputs
    codebook = np.asarray(variables["params"]["codebook"])
    residual = np.asarray(latent)
    for stage in range(module.last_stage + 1):
        for image in range(len(latent)):
            for cluster in range(2**stage):
                inside = np.asarray(structure[image] >> (module.last_stage - stage)) == cluster
                mean = residual[image, inside].mean(axis=0)
                nearest = np.argmin(((codebook - mean) ** 2).sum(axis=-1))
                assert output.tokens[image, 2**stage - 1 + cluster] == nearest
        residual = np.asarray(latent - output.canvases[:, stage + 1])


def test_refiner_is_the_identity_plus_half_a_convolution(quantizer):
    module, variables, latent, _ = quantizer
    params = variables["params"]
    doubled = {**params, "refiner_kernel": 2 * params["refiner_kernel"]}
    doubled["refiner_bias"] = 2 * params["refiner_bias"]
    zero = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def refine(params, stage):
        return module.apply(variables | {"params": params}, latent, stage, method="refine")

    np.testing.assert_array_equal(refine(zero, 3), latent)
    once, twice = refine(params, 3), refine(doubled, 3)
    np.testing.assert_allclose(twice - latent, 2 * (once - latent), atol=1e-5)


def test_canvas_scales_are_ones_until_they_are_measured():
    module = Quantizer(vocab_size=8, channels=4, grid=(2, 2))
    latent, structure = jnp.ones((1, 4, 4)), jnp.arange(4)[None]
    variables = jax.jit(module.init)(jax.random.key(0), latent, structure)
    np.testing.assert_array_equal(variables["stats"]["canvas_scales"], np.ones(4))
    assert variables["params"]["codebook"].shape == (8, 4)
