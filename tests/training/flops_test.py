"""Counted operations against those known on paper."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from nvg_jax.generator import splash
from nvg_jax.training import flops


def test_a_product_and_its_gradient():
    a, b = jnp.ones((8, 32)), jnp.ones((32, 16))
    forward = 2 * 8 * 32 * 16
    assert flops.count(jax.make_jaxpr(jnp.matmul)(a, b)) == forward
    both = jax.grad(lambda a, b: jnp.sum((a @ b) ** 2), (0, 1))
    assert flops.count(jax.make_jaxpr(both)(a, b)) == 3 * forward


def test_loops_count_as_often_as_they_run():
    x, w = jnp.ones((4, 8)), jnp.ones((8, 8))

    def stack(x, w):
        return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=10)[0]

    assert flops.count(jax.make_jaxpr(jax.jit(stack))(x, w)) == 10 * 2 * 4 * 8 * 8
    gradient = jax.grad(lambda w: jnp.sum(stack(x, w)))
    # The first block's input needs no gradient, but all blocks run the same program.
    assert flops.count(jax.make_jaxpr(gradient)(w)) == 3 * 10 * 2 * 4 * 8 * 8


@pytest.mark.parametrize("stride, groups", [(1, 1), (2, 1), (1, 4)])
def test_a_convolution_and_its_gradient(stride, groups):
    image, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4 // groups, 8))

    def conv(image, kernel):
        return lax.conv_general_dilated(
            image,
            kernel,
            (stride, stride),
            [(1, 1), (1, 1)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    forward = 2 * (2 * (8 // stride) ** 2 * 8) * 9 * (4 // groups)
    assert flops.count(jax.make_jaxpr(conv)(image, kernel)) == forward
    both = jax.grad(lambda image, kernel: jnp.sum(conv(image, kernel) ** 2), (0, 1))
    assert flops.count(jax.make_jaxpr(both)(image, kernel)) == pytest.approx(3 * forward, rel=0.35)


def test_of_branches_the_most_expensive_counts():
    def either(x):
        return lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops.count(jax.make_jaxpr(either)(jnp.ones((4, 4)))) == 2 * 2 * 4**3


def test_a_kernel_counts_as_often_as_it_runs():
    """Attention, whose kernel makes two products for each image and head."""
    q = jnp.ones((3, 256, 2, 64))
    counted = flops.count(jax.make_jaxpr(splash.attention)(q, q, q))
    assert counted == 3 * 2 * 2 * 2 * 256 * 256 * 64
