"""The modulated parallel block and its stack (paper, Sec. 3.3)."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Key

from nvg_jax.generator import splash
from nvg_jax.generator.rope import Rotation, by_halves, rope_angles, rotate, rotation
from nvg_jax.generator.sizes import StackSizes
from nvg_jax.sharding import named, split_batch

# What the backward pass may keep of a block, by the name that a config gives it.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("attention"),
    ),
}
xavier = nn.initializers.xavier_uniform()
embedding_init = nn.initializers.normal(0.02)


def dense(
    features: int,
    dtype: Any,
    name: str | None = None,
    axes: tuple[str | None, ...] = (None, None),
    init: Any = xavier,
) -> nn.Dense:
    """A linear layer with the initialisation that both generators use.

    axes: logical names of the kernel's axes (see `sharding`).
    """
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=named(init, *axes),
        dot_general=_token_dot_general,
        name=name,
    )


def _token_dot_general(
    x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None, **options: Any
) -> Array:
    """The product of a linear layer, on the CPU with all tokens in one axis.

    Summing a weight's gradient over batch and tokens as two axes takes XLA's CPU backend three
    times as long; on other backends the reshape would only cost.
    """
    (summed, _), _ = dimension_numbers
    product = functools.partial(
        jax.lax.dot_general, dimension_numbers=dimension_numbers, precision=precision, **options
    )
    flat_product = functools.partial(_flat_product, num_summed=len(summed), precision=precision)
    return jax.lax.platform_dependent(x, kernel, cpu=flat_product, default=product)


def _flat_product(x: Array, kernel: Array, num_summed: int, precision: Any) -> Array:
    """The product over the last `num_summed` axes of x and the first ones of the kernel."""
    tokens, features = x.shape[:-num_summed], kernel.shape[num_summed:]
    width = math.prod(kernel.shape[:num_summed])
    flat = jnp.matmul(x.reshape(-1, width), kernel.reshape(width, -1), precision=precision)
    return flat.reshape(*tokens, *features)


def embed(num_embeddings: int, features: int, name: str | None = None) -> nn.Embed:
    """A float32 embedding table with the initialisation that both generators use."""
    return nn.Embed(num_embeddings, features, embedding_init=embedding_init, name=name)


def dropping(drop_path_key: Key[Array, ""] | None) -> dict[str, Any]:
    """Arguments of `apply` of a network with a `Stack`, which drops paths if there is a key."""
    if drop_path_key is None:
        return {"deterministic": True}
    return {"deterministic": False, "rngs": {"drop_path": drop_path_key}}


def head_by_head(
    q: Float[Array, "B T H E"],
    k: Float[Array, "B S H E"],
    v: Float[Array, "B S H E"],
    mask: Bool[Array | np.ndarray, "T S"] | None = None,
) -> Float[Array, "B T H E"]:
    """Attention with the softmax in float32, as products of one matrix a head.

    XLA's CPU backend takes half the time for them that it takes for `jax.nn.dot_product_attention`,
    where the heads stand between the sums' axes; on accelerators the layout is XLA's choice.
    mask: what each query looks at; without one all.
    """
    q, k, v = (rearrange(x, "b t h e -> b h t e") for x in (q * q.shape[-1] ** -0.5, k, v))
    scores = jnp.einsum("bhte,bhse->bhts", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    weights = jax.nn.softmax(scores).astype(v.dtype)
    return rearrange(jnp.einsum("bhts,bhse->bhte", weights, v), "b h t e -> b t h e")


# By the name that a config gives it.
ATTENTION = {
    "xla": head_by_head,
    "splash": splash.attention,
    "cudnn": functools.partial(jax.nn.dot_product_attention, implementation="cudnn"),
}


class _Fork(nn.Module):
    """A linear layer with several results, of which each is a product of its own.

    Split from one product, their gradients would be put together in memory. The parts have an axis
    of their own, so that a device of the mesh's axis `tensor` holds the same columns of all: whole
    heads, and a slice of the MLP.

    parts: how many times `width` each result has.
    """

    parts: tuple[int, ...]
    width: int
    dtype: Any
    head_width: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> list[Float[Array, "B T parts D"]]:
        shape = (x.shape[-1], sum(self.parts), self.width)
        init = nn.initializers.xavier_uniform(in_axis=0, out_axis=(1, 2))
        kernel = self.param("kernel", named(init, "embed", None, "hidden"), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        ends = np.cumsum(self.parts)[:-1]
        kernels, biases = jnp.split(kernel, ends, 1), jnp.split(bias, ends)
        kernels[0], biases[0] = (by_halves(x, self.head_width) for x in (kernels[0], biases[0]))
        return [
            _token_dot_general(x, part, (((2,), (0,)), ((), ()))) + of_part
            for part, of_part in zip(kernels, biases, strict=True)
        ]


class _Join(nn.Module):
    """A linear layer of several arguments, as if they were one: its counterpart."""

    parts: tuple[int, ...]
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, *xs: Float[Array, "B T _ D"]) -> Float[Array, "B T D"]:
        shape = (sum(self.parts), self.width, self.width)
        init = nn.initializers.xavier_uniform(in_axis=(0, 1), out_axis=2)
        kernel = self.param("kernel", named(init, None, "hidden", "embed"), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[2:])
        kernel, bias, *xs = nn.dtypes.promote_dtype(kernel, bias, *xs, dtype=self.dtype)
        kernels = jnp.split(kernel, np.cumsum(self.parts)[:-1])
        products = (
            _token_dot_general(x, part, (((2, 3), (0, 1)), ((), ())))
            for x, part in zip(xs, kernels, strict=True)
        )
        return sum(products, start=bias)


class _HeadNorm(nn.Module):
    """RMSNorm over each head's features, ordered as `by_halves` does; the scale's are not."""

    @nn.compact
    def __call__(self, x: Float[Array, "B T H E"]) -> Float[Array, "B T H E"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        x = x.astype(jnp.float32)
        norm = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        return x * norm * by_halves(scale, x.shape[-1])


class Block(nn.Module):
    """Attention and MLP in parallel, shifted, scaled and gated by one vector per sample."""

    sizes: StackSizes
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        drop_path: Float[Array, ""],
        vector: Float[Array, "B D"],
        rope: Rotation,
    ) -> Float[Array, "B T D"]:
        width, dtype = self.sizes.width, self.sizes.dtype
        modulation = dense(3 * width, dtype, "modulation", ("embed", "hidden"))
        shift, scale, gate = jnp.split(modulation(nn.silu(vector))[:, None], 3, axis=-1)
        h = (1 + scale) * _layer_norm(x, dtype) + shift
        head_width = width // self.sizes.num_heads
        fork = _Fork((2, 1, 4), width, dtype, head_width, name="linear1")
        qk, v, mlp = fork(h)
        heads = functools.partial(rearrange, pattern="b t part (h e) -> part b t h e", e=head_width)
        (q, k), (v,) = heads(qk), heads(v)
        q = rotate(_HeadNorm(name="query_norm")(q), rope).astype(dtype)
        k = rotate(_HeadNorm(name="key_norm")(k), rope).astype(dtype)
        attended = rearrange(self.attend(q, k, v), "b t h e -> b t 1 (h e)")
        join = _Join((1, 4), width, dtype, name="linear2")
        update = join(attended, nn.gelu(mlp, approximate=True))
        if not self.deterministic:
            update *= self._survival(drop_path, x.shape[0])
        return split_batch(x + gate * update)

    def attend(
        self, q: Float[Array, "B T H E"], k: Float[Array, "B T H E"], v: Float[Array, "B T H E"]
    ) -> Float[Array, "B T H E"]:
        """Attention of all tokens to all."""
        return ATTENTION[self.sizes.attention](q, k, v)

    def _survival(self, drop_path: Float[Array, ""], batch: int) -> Float[Array, "B 1 1"]:
        """Stochastic depth: the samples that keep this block, scaled to keep the expectation."""
        keep = jax.random.bernoulli(self.make_rng("drop_path"), 1 - drop_path, (batch, 1, 1))
        return (keep / (1 - drop_path)).astype(self.sizes.dtype)


class Stack(nn.Module):
    """Blocks stacked by `nn.scan`, so that compile time does not grow with depth.

    Parameters, and what blocks cache, carry a leading axis of length `depth`. The tokens after the
    first `tap` blocks are sown as `tapped` in the collection `intermediates`; 0: none. block: the
    class of the blocks.
    """

    sizes: StackSizes
    tap: int = 0
    block: type[Block] = Block

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        vector: Float[Array, "B D"],
        ids: Float[Array, "B T A"],
        deterministic: bool,
    ) -> Float[Array, "B T D"]:
        sizes, block_class = self.sizes, self.block
        if sizes.remat != "none":
            block_class = nn.remat(self.block, prevent_cse=False, policy=REMAT[sizes.remat])
        block = block_class(sizes, deterministic, name="blocks")

        def body(block, carry, number, rate, vector, rope):
            x, tapped = carry
            x = block(x, rate, vector, rope)
            # Carried along and not collected: the backward pass keeps no copy of it for each block.
            return (x, jnp.where(number == self.tap, x, tapped)), None

        x, vector = split_batch(x), split_batch(vector)
        blocks = nn.scan(
            body,
            variable_axes={"params": 0, "cache": 0},
            split_rngs={"params": True, "drop_path": True},
            metadata_params={nn.PARTITION_NAME: "layers"},
            in_axes=(0, 0, nn.broadcast, nn.broadcast),
            length=sizes.depth,
        )
        numbers = jnp.arange(1, sizes.depth + 1)
        rates = jnp.linspace(0.0, sizes.drop_path, sizes.depth)
        rope = rotation(rope_angles(ids, sizes.width // sizes.num_heads))
        (x, tapped), _ = blocks(block, (x, x), numbers, rates, vector, rope)
        if self.tap:
            self.sow("intermediates", "tapped", tapped)
        return x


class Head(nn.Module):
    """The final layer: a modulated LayerNorm and a linear layer with float32 output."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], vector: Float[Array, "B D"]
    ) -> Float[Array, "B T F"]:
        modulation = dense(2 * x.shape[-1], self.dtype, "modulation", ("embed", "hidden"))
        shift, scale = jnp.split(modulation(nn.silu(vector))[:, None], 2, axis=-1)
        h = (1 + scale) * _layer_norm(x, self.dtype) + shift
        return dense(self.features, jnp.float32, "linear", ("embed", None))(h)


def _layer_norm(x: Float[Array, "B T D"], dtype: Any) -> Float[Array, "B T D"]:
    norm = nn.LayerNorm(epsilon=1e-6, use_scale=False, use_bias=False, dtype=jnp.float32)
    return norm(x).astype(dtype)
