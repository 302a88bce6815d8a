"""The latent flow: its loss where the velocity is known, its solver where it is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import flow_digits
from nvg_jax import keys
from nvg_jax.baselines.flow.generator import build_flow_generator, sample, solve
from nvg_jax.baselines.flow.tokenizer import build_autoencoder
from nvg_jax.generator.settings import Settings


@pytest.fixture(scope="module")
def small(random_variables):
    """An autoencoder and a generator on 4 x 4 positions, with their variables."""
    config = flow_digits.get_config()
    config.data.image_size, config.data.num_classes = 8, 3
    model = config.tokenizer.model
    model.multipliers, model.latent_channels = (1, 1), 4
    model = config.generator.model
    model.depth, model.content_width, model.content_heads = 1, 32, 1
    tokenizer, generator = build_autoencoder(config), build_flow_generator(config)
    made = [random_variables(module.init_variables) for module in (tokenizer, generator)]
    made[0]["stats"]["quantizer"]["canvas_scales"] = jnp.array([1.0, 2.0])
    return tokenizer, generator, *made


def test_a_latent_comes_back_as_it_is(small):
    tokenizer, _, variables, _ = small

    @jax.jit
    def run(images):
        sequence, canvases = tokenizer.apply(variables, images, method="tokenize")
        again = tokenizer.apply(variables, sequence, method="canvases")
        latent = tokenizer.apply(variables, images, method="encode")
        decoded = tokenizer.apply(variables, latent, method="decode")
        return sequence, (canvases, again), latent, decoded, tokenizer.apply(variables, images)

    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=-1.0)
    sequence, both, latent, decoded, trained = run(images)
    assert sequence.structure is None and tokenizer.by_stage(sequence.tokens) == []
    for canvases in both:
        np.testing.assert_array_equal(canvases, np.stack([0 * latent, latent], axis=1))
    assert trained.quantized.loss == 0
    np.testing.assert_allclose(np.clip(trained.images, -1, 1), decoded, atol=1e-6)


def test_the_loss_of_a_known_velocity(small):
    """A head without weights gives its bias everywhere."""
    _, generator, _, variables = small
    params = jax.tree.map(jnp.copy, variables["params"])
    linear, bias = params["flow"]["head"]["linear"], jnp.array([0.5, -1.0, 0.0, 2.0])
    params["flow"]["head"]["linear"] = {"kernel": 0 * linear["kernel"], "bias": bias}
    latent = jax.random.normal(jax.random.key(1), (3, 16, 4))
    image_keys = jax.random.split(jax.random.key(2), 3)
    loss = generator.loss(params, latent, jnp.arange(3), image_keys)
    noise = keys.normal(image_keys, "latent noise", (16, 4))
    np.testing.assert_allclose(loss, np.mean((bias - (noise - latent)) ** 2), rtol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_the_flow_to_one_point_is_exact_in_any_number_of_steps(num_steps):
    point = jax.random.normal(jax.random.key(0), (1, 16, 4))
    noise = jax.random.normal(jax.random.key(1), (3, 16, 4))

    def velocity(state, time, guidance):
        return (state - point) / time

    found = solve(velocity, noise, np.ones(num_steps))
    np.testing.assert_allclose(found, np.broadcast_to(point, found.shape), atol=1e-5)


def test_each_step_has_its_time_and_guidance():
    start = jnp.zeros((1, 1, 1))
    found = solve(
        lambda state, time, guidance: state + time * guidance, start, np.array([1.0, 3.0])
    )
    np.testing.assert_allclose(found, start - 0.5 * (1.0 * 1.0) - 0.5 * (-0.5 + 0.5 * 3.0))


@pytest.mark.parametrize("guidance", [(1.0, 1.0), (1.0, 3.0)])
def test_a_sample_depends_on_its_class_and_key_alone(small, guidance):
    tokenizer, generator, *variables = small
    image_keys, classes = jax.random.split(jax.random.key(5), 4), jnp.array([0, 1, 2, 1])
    settings = Settings(flow_steps=2, content_guidance=guidance)

    def latents(rows):
        given = (*variables, classes[rows], image_keys[rows])
        return np.asarray(sample(tokenizer, generator, settings, *given).tokens)

    together = latents(slice(None))
    np.testing.assert_allclose(together[2:], latents(slice(2, None)), atol=1e-5)
    assert np.abs(together[1] - together[3]).max() > 1e-2
    others = np.asarray(
        sample(tokenizer, generator, settings, *variables, (classes + 1) % 3, image_keys).tokens
    )
    assert np.abs(together - others).max(axis=(1, 2)).min() > 1e-4


def test_without_guidance_the_latent_is_that_of_the_class(small):
    """One step from noise, in the latent's own scale."""
    tokenizer, generator, tokenizer_variables, variables = small
    image_keys, classes = jax.random.split(jax.random.key(6), 2), jnp.array([0, 1])
    settings = Settings(flow_steps=1, content_guidance=(1.0, 1.0))
    found = sample(
        tokenizer, generator, settings, tokenizer_variables, variables, classes, image_keys
    )
    noise = generator.noise(image_keys)
    params = {"params": variables["params"]["flow"]}
    velocity = generator.network.apply(params, noise, jnp.ones(2), classes)
    np.testing.assert_allclose(found.tokens, (noise - velocity) / 2.0, atol=1e-5)
