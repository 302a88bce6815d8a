import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax.errors import UserError
from nvg_jax.interop.translate import Release, parameter_shapes, translate


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(4, name="linear")(x), None


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 1), name="conv_in")(x)
        x = x + self.param("start", nn.initializers.zeros, (5, 4))
        layers = nn.scan(Layer, {"params": 0}, split_rngs={"params": True}, length=3)
        return layers(name="layers")(x, None)[0]


EXAMPLE = jnp.ones((2, 5, 5, 2))


def init(key):
    return Model().init(key, EXAMPLE)


RELEASE = Release(
    names=((r"kernel$", "weight"), (r"^layers/linear", "blocks.{}.fc"), (r"conv_in", "stem/conv")),
    ignored=re.compile(r"^head\."),
    misfit="these are other weights",
    advice="Take the right ones",
    leading_axis=re.compile(r"^start$"),
)


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    shapes = {"stem.conv.weight": (4, 2, 3, 1), "stem.conv.bias": (4,), "start": (1, 5, 4)}
    for index in range(3):
        shapes |= {f"blocks.{index}.fc.weight": (4, 4), f"blocks.{index}.fc.bias": (4,)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def test_the_translated_model_computes_what_the_released_one_does(tensors):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    t = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    images = np.random.default_rng(1).standard_normal(EXAMPLE.shape)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    x = torch.nn.functional.conv2d(x, t["stem.conv.weight"], t["stem.conv.bias"], padding=(1, 0))
    x = x.permute(0, 2, 3, 1) + t["start"]
    for index in range(3):
        layer = f"blocks.{index}.fc"
        x = torch.nn.functional.linear(x, t[f"{layer}.weight"], t[f"{layer}.bias"])

    params = translate(tensors, parameter_shapes(init), RELEASE)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    found = Model().apply({"params": params}, jnp.asarray(images, jnp.float32))
    np.testing.assert_allclose(found, x.numpy(), atol=1e-5)


def test_what_is_ignored_may_be_there(tensors):
    shapes = parameter_shapes(init)
    expected = translate(tensors, shapes, RELEASE)
    actual = translate(tensors | {"head.weight": np.zeros(3)}, shapes, RELEASE)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_every_tensor_that_does_not_fit_is_named_in_one_line(tensors):
    del tensors["blocks.1.fc.bias"]
    tensors["start"] = tensors["start"][0]
    tensors["blocks.3.fc.weight"] = np.zeros((4, 4))
    with pytest.raises(UserError) as error:
        translate(tensors, parameter_shapes(init), RELEASE)
    problems = str(error.value).removeprefix("these are other weights: ")
    assert set(problems.removesuffix(". Take the right ones").split("; ")) == {
        "blocks.1.fc.bias is missing",
        "start is [5, 4], not [1, 5, 4]",
        "blocks.3.fc.weight is not expected",
    }
