"""Structure-aware RoPE: a token is turned by its role, its clusters and its place (Sec. 3.3)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from nvg_jax.errors import UserError

Rotation = tuple[Float[Array, "B T 1 E"], Float[Array, "B T 1 E"]]

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
    """Cosine and signed sine for every dim of a head: made once, used by all blocks."""
    sign = jnp.tile(jnp.array([-1.0, 1.0]), angles.shape[-1])
    cos, sin = jnp.repeat(jnp.cos(angles), 2, axis=-1), jnp.repeat(jnp.sin(angles), 2, axis=-1)
    return cos[:, :, None], sign * sin[:, :, None]


def rotate(x: Float[Array, "B T H E"], rotation: Rotation) -> Float[Array, "B T H E"]:
    """Rotates interleaved pairs (2i, 2i + 1) of each head, in float32."""
    cos, sin = rotation
    even = jnp.arange(x.shape[-1]) % 2 == 0
    partner = jnp.where(even, jnp.roll(x, -1, axis=-1), jnp.roll(x, 1, axis=-1))
    return (x * cos + partner * sin).astype(x.dtype)
