import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax.frozen import vit, weights
from nvg_jax.interop.frozen_names import frozen_variables
from tests.published_networks import state_dict

PATCH = 4


def _relative_error(found, expected):
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module")
def small():
    """A tiny transformer of 3 x 3 patches, and its random variables."""
    module = vit.VisionTransformer(
        patch_size=PATCH, width=8, num_heads=2, native_grid=3, layer_scale=True
    )
    return module, jax.jit(module.init)(jax.random.key(0), _images(3, 3))


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def _apply(module, variables, images, method="__call__"):
    return module.apply(variables, images, method=method)


def _images(rows, columns):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.uniform(-1, 1, (2, PATCH * rows, PATCH * columns, 3)), jnp.float32)


def test_dino_readouts_equal_the_reference(reference, reference_image):
    network, images = weights.NETWORKS["dino"], reference_image("dino.image")
    variables = frozen_variables(state_dict(network), network)
    found = _apply(network.module, variables, images, method="readouts")
    assert found.shape == (len(images), 5, np.prod(images.shape[1:3]) // 16**2, 384)
    for index in range(5):
        expected = reference[f"dino.readout.{index}"]
        assert _relative_error(found[:, index, ::7, ::8], expected) < 1e-5


def test_dinov2_patch_tokens_equal_the_reference(reference, reference_image):
    network, images = weights.NETWORKS["dinov2"], reference_image("dinov2.image")
    variables = jax.device_put(frozen_variables(state_dict(network), network))
    side = 8 * reference["dinov2.preprocessed"].shape[-1] // 14  # Of which are every 8th pixel.

    positions = network.module.apply(variables, (side, side), method="position_embedding")
    assert _relative_error(positions[:, ::8, ::8], reference["dinov2.pos_embed"]) < 1e-5

    expected = reference["dinov2.patch_tokens"]
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)):
        module = vit.dinov2_vitb14(dtype)
        features = jax.jit(lambda *inputs, m=module: vit.dinov2_features(m, *inputs, (side, side)))
        found = features(variables, images)
        assert found.shape == (len(images), side**2, 768) and found.dtype == jnp.float32
        assert _relative_error(found[:, ::8, ::8], expected) < tolerance


def test_patch_tokens_are_the_normed_tokens_after_the_last_block(small):
    """Both outputs of a transformer whose class token stays zero."""
    module, variables = small
    silent = jax.tree.map(jnp.zeros_like, variables["params"]["blocks"])
    params = variables["params"] | {"blocks": silent, "cls_token": jnp.zeros((1, 1, 8))}
    params["pos_embed"] = params["pos_embed"].at[:, 0].set(0)
    readouts = _apply(module, {"params": params}, _images(3, 3), method="readouts")
    np.testing.assert_array_equal(readouts[:, -1], readouts[:, 0])
    found = _apply(module, {"params": params}, _images(3, 3))
    last = readouts[:, -1]
    expected = (last - last.mean(-1, keepdims=True)) / last.std(-1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_patches_are_counted_row_by_row(small):
    """A change of one patch changes its own token first: before block 0, only that one."""
    module, variables = small
    images = _images(2, 5)
    changed = images.at[:, PATCH : 2 * PATCH, 3 * PATCH : 4 * PATCH].set(0)
    before, after = (
        _apply(module, variables, x, method="readouts")[:, 0] for x in (images, changed)
    )
    (differing,) = np.nonzero(np.abs(before - after).max(axis=(0, 2)) > 1e-6)
    assert list(differing) == [5 + 3]


@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (6, 6)])
def test_any_grid_of_patches_is_seen(small, grid):
    module, variables = small
    tokens = _apply(module, variables, _images(*grid))
    assert tokens.shape == (2, grid[0] * grid[1], 8)
    assert jnp.isfinite(tokens).all()
    features = vit.dinov2_features(module, variables, jnp.zeros((2, 19, 23, 3)), grid)
    assert features.shape == tokens.shape


def test_gradient_reaches_the_images(small):
    module, variables = small
    gradient = jax.grad(lambda x: _apply(module, variables, x, method="readouts").std())(
        _images(3, 3)
    )
    assert jnp.isfinite(gradient).all() and (jnp.abs(gradient) > 0).mean() > 0.9
