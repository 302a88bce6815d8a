"""The adversarial losses and the heads against NumPy, and what the gradients reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import nvg_digits
from nvg_jax.frozen.vit import VisionTransformer
from nvg_jax.tokenizer import adversary as adversarial
from nvg_jax.tokenizer.adversary import Adversary, Discriminator

REAL = np.array([[0.2, 1.7, -3.0], [0.9, 1.1, 0.0]], np.float32)
FAKE = np.array([[-0.2, -1.7, 3.0], [0.5, -1.1, 0.1]], np.float32)


def test_fooling_loss():
    expected = np.log(1 + np.exp(-FAKE.mean(dtype=np.float64)))
    np.testing.assert_allclose(adversarial.fooling_loss(jnp.asarray(FAKE)), expected, rtol=1e-6)


def test_hinge_loss():
    expected = 0.5 * (np.maximum(1 - REAL, 0).mean() + np.maximum(1 + FAKE, 0).mean())
    np.testing.assert_allclose(
        adversarial.hinge_loss(jnp.asarray(REAL), jnp.asarray(FAKE)), expected, rtol=1e-6
    )


def test_lecam_loss():
    anchors = np.array([0.6, -0.3], np.float32)
    too_real, too_fake = np.maximum(REAL + 0.3, 0), np.maximum(0.6 - FAKE, 0)
    expected = (too_real**2).mean() + (too_fake**2).mean()
    np.testing.assert_allclose(
        adversarial.lecam_loss(*map(jnp.asarray, (REAL, FAKE, anchors))), expected, rtol=1e-6
    )


@pytest.fixture(scope="module")
def setting():
    module = VisionTransformer(16, width=32, num_heads=2, native_grid=2, layer_scale=False)
    dino_variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    config = nvg_digits.get_config().tokenizer.training
    config.discriminator.input_size = 16
    adversary = Adversary(module, config, num_steps=10)
    real, fake = jax.random.uniform(jax.random.key(0), (2, 4, 20, 20, 3), minval=-1.0)
    return adversary, dino_variables, real, fake


def test_gradients_stay_on_their_side(setting):
    adversary, dino_variables, real, fake = setting
    state = jax.jit(adversary.init)(jax.random.key(1))

    @jax.jit
    def gradients(params, fake):
        def loss(which, params, fake):
            losses = adversary.losses(params, state, dino_variables, real, fake, jax.random.key(2))
            return losses[which]

        return [
            jax.grad(lambda p, f, w=which: loss(w, p, f), (0, 1))(params, fake) for which in (0, 1)
        ]

    (params_fooling, fake_fooling), (params_judging, fake_judging) = gradients(state.params, fake)
    assert np.abs(fake_fooling).max() > 0 and np.abs(fake_judging).max() == 0
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(params_fooling))
    kernels = [head["kernel"] for name, head in params_judging["heads"].items() if "Conv" in name]
    assert all(np.abs(kernel).max() > 0 for kernel in kernels)


def test_anchors_follow_the_mean_logits_slowly(setting):
    adversary, dino_variables, real, fake = setting
    state = jax.jit(adversary.init)(jax.random.key(1))
    _, _, aux = jax.jit(adversary.losses)(
        state.params, state, dino_variables, real, fake, jax.random.key(2)
    )
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    updated = adversary.update(state, zeros, aux)
    np.testing.assert_allclose(updated.anchors, 0.001 * aux["logits"], rtol=1e-4)


def test_weight_decay_is_the_discriminators_own():
    config = nvg_digits.get_config().tokenizer.training
    config.update({"learning_rate": 0.1, "warmup_steps": 0, "weight_decay": 0.0})
    config.discriminator.update({"input_size": 16, "weight_decay": 0.5})
    module = VisionTransformer(16, width=32, num_heads=2, native_grid=2, layer_scale=False)
    adversary = Adversary(module, config, num_steps=10)
    state = jax.jit(adversary.init)(jax.random.key(1))
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    aux = {"stats": state.stats, "logits": jnp.zeros(2)}
    decayed = adversary.update(state, zeros, aux).params["heads"]
    for name, head in state.params["heads"].items():
        for kind, old in head.items():
            factor = 0.95 if kind == "kernel" else 1.0
            np.testing.assert_allclose(decayed[name][kind], factor * old, rtol=1e-5, atol=1e-7)


READOUTS = jax.random.normal(jax.random.key(0), (4, 2, 12, 6))


@pytest.fixture(scope="module")
def variables():
    return jax.jit(Discriminator().init)(jax.random.key(1), READOUTS)


@jax.jit
def run(variables):
    return Discriminator().apply(variables, READOUTS, mutable=["batch_stats"])


def converged(variables):
    """The variables after many rounds of the power iteration."""
    for _ in range(200):
        _, updated = run(variables)
        variables = {**variables, **updated}
    return variables


def head(params, x):
    """A head on [B, patches, D] in NumPy, with exact singular values."""

    def conv(x, layer):
        kernel = params[f"Conv_{layer}"]["kernel"]
        kernel = kernel / np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]))[1][0]
        size = len(kernel)
        shifted = [np.roll(x, size // 2 - tap, axis=1) @ kernel[tap] for tap in range(size)]
        return sum(shifted) + params[f"Conv_{layer}"]["bias"]

    def block(x, layer):
        x = conv(x, layer)
        x = (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5)
        norm = params[f"LayerNorm_{layer}"]
        x = x * norm["scale"] + norm["bias"]
        return np.where(x > 0, x, 0.2 * x)

    x = block(x, 0)
    x = (x + block(x, 1)) / np.sqrt(2)
    return conv(x, 2)[..., 0]


def test_heads_are_what_they_should_be(variables):
    variables = converged(variables)
    logits, _ = run(variables)
    heads = jax.tree.map(np.asarray, variables["params"]["heads"])
    expected = [
        head(jax.tree.map(lambda leaf, i=index: leaf[i], heads), np.asarray(READOUTS[:, index]))
        for index in range(2)
    ]
    np.testing.assert_allclose(logits, np.concatenate(expected, axis=1), atol=2e-4)


def test_power_iteration_goes_on_only_if_it_may(variables):
    logits = jax.jit(Discriminator().apply)(variables, READOUTS)
    same, updated = run(variables)
    np.testing.assert_allclose(logits, same, atol=1e-5)
    vectors = zip(
        jax.tree.leaves(variables["batch_stats"]),
        jax.tree.leaves(updated["batch_stats"]),
        strict=True,
    )
    assert any(np.any(old != new) for old, new in vectors)


def test_batch_norm_looks_at_the_whole_batch(variables):
    halves = [jax.jit(Discriminator().apply)(variables, half) for half in jnp.split(READOUTS, 2)]
    whole = jax.jit(Discriminator().apply)(variables, READOUTS)
    assert np.abs(np.concatenate(halves) - whole).max() > 1e-3
