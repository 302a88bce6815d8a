"""The heads against NumPy, and their spectral norm against a singular value decomposition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax.tokenizer.discriminator import Discriminator

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
    """A head on [B, N, D] in NumPy, with exact singular values."""

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
