"""Structure-aware RoPE: a token is turned by its role, its clusters and its place (Sec. 3.3)."""

from __future__ import annotations

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from nvg_jax.errors import UserError

Rotation = tuple[Float[Array, "B T 1 P"], Float[Array, "B T 1 P"]]

ROPE_THETA = 10_000.0


def rope_axis_dims(head_width: int, num_bits: int) -> tuple[int, ...]:
    """How a head's dims are shared out: role, one pair per structure channel, row, column.

    Rows and columns get the largest even share that leaves the role at least 8 dims: 20 each for a
    head of width 64 and 8 structure channels. UserError if they would get none.
    """
    spatial = 2 * ((head_width - 8 - 2 * num_bits) // 4)
    role = head_width - 2 * num_bits - 2 * spatial
    if spatial < 2:
        raise UserError(
            f"a head of width {head_width} has no room for the axes of {num_bits} structure "
            "channels: choose a larger width or fewer heads"
        )
    return (role, *[2] * num_bits, spatial, spatial)


def rope_ids(
    structure_embedding: Float[Array, "B L K"], grid: tuple[int, int], role: int = 0
) -> Float[Array, "B L A"]:
    """The ids of a group of tokens on the axes: role, structure channels, row, column.

    grid: rows and columns of the L positions.
    """
    batch, length, _ = structure_embedding.shape
    row, column = jnp.divmod(jnp.arange(length), grid[1])
    place = jnp.stack([row, column], axis=-1).astype(jnp.float32)
    return jnp.concatenate(
        [
            jnp.full((batch, length, 1), float(role)),
            structure_embedding,
            jnp.broadcast_to(place, (batch, length, 2)),
        ],
        axis=-1,
    )


def with_class_token(ids: Float[Array, "B T A"]) -> Float[Array, "B T1 A"]:
    """Puts the class token before the others: its id is 1 on every axis."""
    return jnp.concatenate([jnp.ones_like(ids[:, :1]), ids], axis=1)


def rope_angles(ids: Float[Array, "B T A"], head_width: int) -> Float[Array, "B T P"]:
    """The rotation of each of the head's pairs: id times the pair's frequency."""
    axis_dims = rope_axis_dims(head_width, ids.shape[-1] - 3)
    angles = []
    for axis, dims in enumerate(axis_dims):
        frequency = ROPE_THETA ** -(jnp.arange(0, dims, 2) / dims)
        angles.append(ids[..., axis : axis + 1] * frequency)
    return jnp.concatenate(angles, axis=-1)


def rotation(angles: Float[Array, "B T P"]) -> Rotation:
    """Cosine and sine of every pair of a head: made once, used by all blocks."""
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def by_halves(x: Float[Array, "... F"], head_width: int) -> Float[Array, "... F"]:
    """Orders the features of each head anew: pairs' first members before all second ones."""
    pairs = rearrange(x, "... (h pair two) -> ... h pair two", pair=head_width // 2, two=2)
    return rearrange(pairs, "... h pair two -> ... (h two pair)")


def rotate(x: Float[Array, "B T H E"], rotation: Rotation) -> Float[Array, "B T H E"]:
    """Rotates the pairs of each head, in float32.

    They are ordered as `by_halves` does, which products of queries and keys do not depend on: on
    accelerators neighbours would have to be moved through memory to be turned.
    """
    cos, sin = rotation
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
