"""How much faster mutual-nearest-neighbour rounds are than one arg-min per pair.

    python -m benchmarks.clustering --batch=32 --positions=256 --channels=32

Both versions use the same distances, are checked to give equal labels and are timed in turns in
one run. Images/s depend on the machine and on what else it does: compare the ratios.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jaxtyping import Array, Float, Int
from scipy import ndimage

from nvg_jax import clustering, granularity

_BATCH = flags.DEFINE_integer("batch", 32, "Images.", lower_bound=1)
_POSITIONS = flags.DEFINE_integer("positions", 256, "Latent positions, a power of two.")
_CHANNELS = flags.DEFINE_integer("channels", 32, "Latent channels.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 20, "Timed runs of each version.", lower_bound=1)


def cluster_sequentially(latent: Float[Array, "B L C"]) -> Int[Array, "B L"]:
    """The structure by one search over all free pairs for every pair."""
    batch, num_positions, _ = latent.shape
    centroids = latent
    members = jnp.broadcast_to(jnp.arange(num_positions)[:, None], (batch, num_positions, 1))
    while centroids.shape[1] > 1:
        pairs = _sequential_pairs(centroids)
        centroids = clustering.take(centroids, pairs).mean(axis=2)
        members = clustering.take(members, pairs).reshape(batch, pairs.shape[1], -1)
    return clustering.invert(members[:, 0])


def _sequential_pairs(points: Float[Array, "B N C"]) -> Int[Array, "B N//2 2"]:
    batch, num_points, _ = points.shape
    keys = clustering.distance_keys(points)
    index = jnp.arange(num_points)

    def pair_closest(rank, state):
        free, pairs = state
        # One pass over all pairs gives each point's smallest distance; the rest needs one row.
        nearest_key = jnp.where(free[:, :, None], keys, clustering.NEVER).min(axis=1)
        nearest_key = jnp.where(free, nearest_key, clustering.NEVER)
        key = nearest_key.min(axis=1, keepdims=True)
        first = jnp.where(nearest_key == key, index, num_points).min(axis=1, keepdims=True)
        row = jnp.where(free, clustering.take(keys, first)[:, 0], clustering.NEVER)
        second = jnp.where(row == key, index, num_points).min(axis=1, keepdims=True)
        pair = jnp.concatenate([first, second], axis=1)
        return free & (index != first) & (index != second), pairs.at[:, rank].set(pair)

    start = jnp.ones((batch, num_points), bool), jnp.zeros((batch, num_points // 2, 2), jnp.int32)
    return jax.lax.fori_loop(0, num_points // 2, pair_closest, start)[1]


def random_latent() -> np.ndarray:
    shape = _BATCH.value, _POSITIONS.value, _CHANNELS.value
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def smooth_latent() -> np.ndarray:
    """Neighbouring positions are alike, as in the latents of an image."""
    noise = random_latent()
    height = 2 ** (granularity.last_stage(_POSITIONS.value) // 2)
    grid = noise.reshape(_BATCH.value, height, -1, _CHANNELS.value)
    return ndimage.gaussian_filter(grid, sigma=(0, 2, 2, 0), mode="wrap").reshape(noise.shape)


def seconds(run: Callable[[], Array]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def compare(name: str, latent: Float[Array, "B L C"]) -> None:
    rounds, sequential = jax.jit(clustering.cluster), jax.jit(cluster_sequentially)
    if not np.array_equal(rounds(latent), sequential(latent)):
        raise AssertionError(f"{name}: the two versions differ in their labels")
    times = np.array(
        [
            (seconds(lambda: rounds(latent)), seconds(lambda: sequential(latent)))
            for _ in range(_REPEATS.value)
        ]
    )
    print(f"{name}: equal labels")
    for statistic, (fast, slow) in {"best": times.min(0), "median": np.median(times, 0)}.items():
        print(
            f"  {statistic:>6}: rounds {len(latent) / fast:7.1f} images/s, "
            f"sequential {len(latent) / slow:7.1f} images/s, ratio {slow / fast:.2f}"
        )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    print(
        f"{_BATCH.value} images of {_POSITIONS.value} positions and {_CHANNELS.value} channels "
        f"on {jax.devices()[0].device_kind}"
    )
    compare("random", jnp.asarray(random_latent()))
    compare("smooth", jnp.asarray(smooth_latent()))


if __name__ == "__main__":
    app.run(main)
