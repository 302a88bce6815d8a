"""Structure from data: a latent's positions are paired greedily, level by level, into a tree.

And other balanced trees of the same form, to compare it with.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nvg_jax import granularity

# The key of what must never be chosen: above the key of every float32.
NEVER = jnp.iinfo(jnp.int32).max


def cluster(latent: Float[Array, "B L C"]) -> Int[Array, "B L"]:
    """The structure of a latent by greedy pairing (paper, Sec. 3).

    From 2m clusters to m: the two free clusters with the closest centroids (l2) are paired until
    none is free; of equally close pairs the one with the smallest indices comes first. Clusters
    are numbered in the order of their pairing, the first ones by raster position.

    No gradient flows through it, and it computes in float32. Distances that are not finite count
    as the largest finite one, so the result is a valid structure for every latent.

    Returns:
      int32 leaf labels s_K, a permutation of 0..L-1 for each image. The labels of stage k are
      s_K >> (K - k): cluster j of a stage splits into 2j and 2j + 1 of the next, 2j being the one
      that was paired earlier (among single positions: the one that comes first in raster order).

    Raises:
      UserError: L is not a power of two.
    """
    granularity.last_stage(latent.shape[1])
    latent = jax.lax.stop_gradient(latent)
    batch, num_positions, _ = latent.shape
    centroids = latent.astype(jnp.float32)
    # [B N L/N]: the positions of each cluster, those of its first child before the others.
    members = jnp.broadcast_to(jnp.arange(num_positions)[:, None], (batch, num_positions, 1))
    while centroids.shape[1] > 1:
        pairs = _greedy_pairs(centroids)
        centroids = take(centroids, pairs).mean(axis=2)  # all clusters are equally large
        members = take(members, pairs).reshape(batch, pairs.shape[1], -1)
    # The root's members are in the order of their labels; the inverse gives each position's label.
    return invert(members[:, 0])


def principal(latent: Float[Array, "B L C"]) -> Int[Array, "B L"]:
    """A structure from the top down: each cluster is halved along its main direction.

    That is the first principal component of its vectors, of which the sum is not negative; the half
    that is further along it is the second. As `cluster` in all else.
    """
    last_stage = granularity.last_stage(latent.shape[1])
    latent = jax.lax.stop_gradient(latent).astype(jnp.float32)
    batch, num_positions, _ = latent.shape
    members = jnp.broadcast_to(jnp.arange(num_positions), (batch, 1, num_positions))
    for stage in range(last_stage):
        points = take(latent, members)
        centred = points - points.mean(axis=2, keepdims=True)
        covariance = jnp.einsum("bnmc,bnmd->bncd", centred, centred)
        direction = _main_direction(covariance)
        direction *= jnp.where(direction.sum(axis=-1, keepdims=True) < 0, -1.0, 1.0)
        along = jnp.argsort(jnp.einsum("bnmc,bnc->bnm", centred, direction), axis=-1, stable=True)
        members = jnp.take_along_axis(members, along, axis=-1).reshape(batch, 2 ** (stage + 1), -1)
    return invert(members[:, :, 0])


def _main_direction(covariance: Float[Array, "B N C C"]) -> Float[Array, "B N C"]:
    """The eigenvector of the largest eigenvalue, of any sign and length; zero of zero.

    High powers of a matrix have nothing else left. An `eigh` of many matrices stands still where
    several CPU devices call it at once, each waiting for the threads that the others have.
    """

    def square(_: Int[Array, ""], power: Float[Array, "B N C C"]) -> Float[Array, "B N C C"]:
        trace = jnp.trace(power, axis1=-2, axis2=-1)[..., None, None]
        power /= jnp.maximum(trace, jnp.finfo(power.dtype).tiny)
        return jnp.matmul(power, power, precision=jax.lax.Precision.HIGHEST)

    power = jax.lax.fori_loop(0, 20, square, covariance)  # The 2^20-th.
    longest = jnp.diagonal(power, axis1=-2, axis2=-1).argmax(axis=-1)[..., None, None]
    return jnp.take_along_axis(power, longest, axis=-1)[..., 0]


def spatial(latent: Float[Array, "B L C"]) -> Int[Array, "B L"]:
    """The same structure for all images: the grid halved into left and right, top and bottom, ...

    Of the K bits of a position in raster order the lower half, rounded up, is its column.
    """
    batch, num_positions, _ = latent.shape
    last_stage = granularity.last_stage(num_positions)
    position, leaf = jnp.arange(num_positions, dtype=jnp.int32), 0
    for stage in range(last_stage):
        num_bits = last_stage if stage % 2 else (last_stage + 1) // 2
        leaf = 2 * leaf + (position >> (num_bits - 1 - stage // 2) & 1)
    return jnp.broadcast_to(leaf, (batch, num_positions))


def random(latent: Float[Array, "B L C"]) -> Int[Array, "B L"]:
    """The same structure for all images: positions in a random order, always the same."""
    batch, num_positions, _ = latent.shape
    granularity.last_stage(num_positions)
    leaf = jax.random.permutation(jax.random.key(0), jnp.arange(num_positions, dtype=jnp.int32))
    return jnp.broadcast_to(leaf, (batch, num_positions))


# By the name that a config gives it: the paper's, and what tells what it contributes.
CLUSTERINGS = {"greedy": cluster, "principal": principal, "spatial": spatial, "random": random}


def _greedy_pairs(points: Float[Array, "B N C"]) -> Int[Array, "B N//2 2"]:
    """The pairs in the order in which a greedy search finds them, the smaller index first.

    A pair of mutually nearest points is always in the greedy result, since nothing that could
    break it up is closer. So each round takes all such pairs at once; at least the closest pair
    is one. Among equally near points the first is the nearest: this follows the greedy order
    (distance, smaller index, larger index), so ties are broken alike.
    """
    batch, num_points, _ = points.shape
    keys = distance_keys(points)
    index = jnp.arange(num_points, dtype=jnp.int32)

    def some_free(state):
        partner, _ = state
        return jnp.any(partner < 0)

    def pair_mutually_nearest(state):
        partner, pair_key = state
        free = partner < 0
        # Two reductions, as XLA's arg-min is slow on CPU; over the first of the two point axes,
        # so that they run along vectors of columns.
        candidates = jnp.where(free[:, :, None], keys, NEVER)
        nearest_key = candidates.min(axis=1)
        is_nearest = candidates == nearest_key[:, None]
        nearest = jnp.where(is_nearest, index[:, None], num_points).min(axis=1)
        # The closest pair is mutual anyhow. Naming it makes sure that the rounds end, even if
        # distances (i, j) and (j, i) were rounded differently and led around in a circle.
        free_key = jnp.where(free, nearest_key, NEVER)
        is_closest = free_key == free_key.min(axis=1, keepdims=True)
        closest = jnp.where(is_closest, index, num_points).min(axis=1, keepdims=True)
        nearest = jnp.where(index == take(nearest, closest), closest, nearest)
        # `free` guards images that are finished, where `nearest` means nothing.
        mutual = free & (take(nearest, nearest) == index)
        return (
            jnp.where(mutual, nearest, partner),
            jnp.where(mutual, nearest_key, pair_key),
        )

    start = jnp.full((batch, num_points), -1, jnp.int32), jnp.zeros((batch, num_points), jnp.int32)
    partner, pair_key = jax.lax.while_loop(some_free, pair_mutually_nearest, start)

    # A pair stands at its smaller index; the greedy order is that of the distances, then of the
    # indices. Each point's rank is counted, as XLA's sort is slow on CPU.
    key = jnp.where(index < partner, pair_key, NEVER)
    earlier = key[:, :, None] < key[:, None]
    earlier |= (key[:, :, None] == key[:, None]) & (index[:, None] < index)
    smaller = invert(earlier.sum(axis=1, dtype=jnp.int32))[:, : num_points // 2]
    return jnp.stack([smaller, take(partner, smaller)], axis=-1)


def distance_keys(points: Float[Array, "B N C"]) -> Int[Array, "B N N"]:
    """Integers in the order of the squared distances; no point is near itself.

    The bits of non-negative floats are ordered like the floats, and minima of integers, which
    need not care for NaN, are faster. Direct differences, unlike |a|^2 + |b|^2 - 2ab, give
    duplicates exactly zero.
    """
    # Summed channel by channel, as XLA's sum over the last axis is slower on CPU.
    channels = jnp.moveaxis(points, -1, 0)
    squared = sum(jnp.square(channel[:, :, None] - channel[:, None]) for channel in channels)
    finite = jnp.where(jnp.isfinite(squared), squared, jnp.finfo(jnp.float32).max)
    keys = jax.lax.bitcast_convert_type(finite, jnp.int32)
    return jnp.where(jnp.eye(points.shape[1], dtype=bool), NEVER, keys)


def invert(permutation: Int[Array, "B N"]) -> Int[Array, "B N"]:
    """The inverse of each row."""
    batch, length = permutation.shape
    image = jnp.arange(batch)[:, None]
    index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    return (
        jnp.zeros_like(index)
        .at[image, permutation]
        .set(index, unique_indices=True, mode="promise_in_bounds")
    )


def take(values: Array, index: Int[Array, "B ..."]) -> Array:
    """For each image the rows of `values` [B, N, ...] that `index` names: [*index.shape, ...]."""
    rows = values.shape[2:]
    flat = index.reshape(index.shape[0], -1, *(1 for _ in rows))
    taken = jnp.take_along_axis(values, flat, axis=1, mode="promise_in_bounds")
    return taken.reshape(*index.shape, *rows)
