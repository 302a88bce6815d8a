import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from nvg_jax import clustering, granularity
from nvg_jax.errors import UserError

BATCH, CHANNELS = 3, 4  # few shapes: each is compiled once
cluster = jax.jit(clustering.cluster)


def greedy_leaf_labels(points: np.ndarray) -> np.ndarray:
    """The definition, one pair after the other, for the points [L, C] of one image."""
    points = points.astype(np.float64)
    clusters = [[position] for position in range(len(points))]
    levels = []
    while len(clusters) > 1:
        centroids = np.stack([points[members].mean(axis=0) for members in clusters])
        distances = np.square(centroids[:, None] - centroids[None]).sum(axis=-1)
        distances[np.tril_indices(len(clusters))] = np.inf
        pairs = []
        for _ in range(len(clusters) // 2):
            pair = np.unravel_index(distances.argmin(), distances.shape)
            pairs.append(pair)
            distances[pair, :] = distances[:, pair] = np.inf
        clusters = [clusters[first] + clusters[second] for first, second in pairs]
        levels.append(pairs)

    labels = [0]
    for pairs in reversed(levels):
        children = np.empty(2 * len(pairs), np.int64)
        for label, pair in zip(labels, pairs, strict=True):
            children[list(pair)] = 2 * label, 2 * label + 1
        labels = children
    return np.asarray(labels)


def random_points(kind: str, num_positions: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = BATCH, num_positions, CHANNELS
    if kind == "ties":  # centroids of these integers are exact in float32
        return rng.integers(0, 3, shape).astype(np.float32)
    if kind == "integers":
        return rng.integers(0, 32, shape).astype(np.float32)
    points = rng.standard_normal(shape, np.float32)
    if kind == "smooth":
        height = 2 ** (granularity.last_stage(num_positions) // 2)
        grid = points.reshape(BATCH, height, -1, CHANNELS)
        points = ndimage.gaussian_filter(grid, (0, 2, 2, 0), mode="wrap").reshape(shape)
    return points


@pytest.mark.parametrize("name", ["white", "smooth", "small"])
def test_labels_of_all_stages_are_those_of_the_reference(golden_directory, name):
    with np.load(golden_directory / "clustering.npz", allow_pickle=False) as golden:
        points, expected = golden[f"{name}.points"], golden[f"{name}.labels"]
    structure = cluster(points)
    for stage in range(expected.shape[1]):
        labels = granularity.labels_at(structure, stage)
        np.testing.assert_array_equal(labels, expected[:, stage], err_msg=f"stage {stage}")


@pytest.mark.parametrize("num_positions", [4, 8, 16, 64, 256])
# Derandomized, as rounding may order nearly equal float distances unlike float64 does.
@hypothesis.settings(max_examples=12, deadline=None, derandomize=True)
@hypothesis.given(
    kind=st.sampled_from(["normal", "smooth", "integers", "ties"]), seed=st.integers(0, 2**32 - 1)
)
def test_same_as_pairing_one_after_the_other(num_positions, kind, seed):
    points = random_points(kind, num_positions, seed)
    expected = np.stack([greedy_leaf_labels(image) for image in points])
    np.testing.assert_array_equal(cluster(points), expected)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(hnp.arrays(np.float32, (BATCH, 16, CHANNELS), elements=st.integers(0, 2)))
def test_smallest_indices_win_ties(points):
    expected = np.stack([greedy_leaf_labels(image) for image in points])
    np.testing.assert_array_equal(cluster(points), expected)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(hnp.arrays(np.float32, (BATCH, 16, CHANNELS), elements=st.floats(width=32)))
def test_any_latent_even_with_nan_and_infinity_gives_balanced_nested_stages(points):
    structure = cluster(points)
    assert structure.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(structure, axis=1), np.tile(np.arange(16), (BATCH, 1)))
    for stage in range(5):
        labels = np.asarray(granularity.labels_at(structure, stage))
        for image in labels:
            np.testing.assert_array_equal(np.bincount(image), np.full(2**stage, 16 // 2**stage))
        if stage:
            parents = np.asarray(granularity.labels_at(structure, stage - 1))
            np.testing.assert_array_equal(labels // 2, parents)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 0.0])
def test_equal_points_are_paired_in_raster_order(value):
    points = np.full((BATCH, 16, CHANNELS), value, np.float32)
    np.testing.assert_array_equal(cluster(points), np.tile(np.arange(16), (BATCH, 1)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_points_that_are_not_finite_are_paired_last(value):
    image = np.array([value, value, 5, 5], np.float32)
    points = np.broadcast_to(image[:, None], (BATCH, 4, CHANNELS))
    np.testing.assert_array_equal(cluster(points), np.tile([2, 3, 0, 1], (BATCH, 1)))


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    shift=st.integers(-32, 32),
    scale=st.sampled_from([-4.0, -1.0, 0.5, 2.0]),
)
def test_only_relative_distances_matter(seed, shift, scale):
    points = random_points("integers", 16, seed)
    np.testing.assert_array_equal(cluster(scale * (points + shift)), cluster(points))


def test_low_precision_latent_is_clustered_in_float32():
    latent = jnp.asarray(random_points("normal", 64, seed=0), jnp.bfloat16)
    np.testing.assert_array_equal(cluster(latent), cluster(latent.astype(jnp.float32)))


def test_no_gradient_flows():
    points = jnp.asarray(random_points("normal", 16, seed=0))

    def loss(latent):
        return (latent * clustering.cluster(latent)[:, :, None]).sum()

    expected = jnp.broadcast_to(cluster(points)[:, :, None], points.shape)
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(points), expected)


@pytest.mark.parametrize("num_positions", [12, 100])
def test_positions_that_are_no_power_of_two_are_refused(num_positions):
    with pytest.raises(UserError, match=f"{num_positions} latent positions"):
        clustering.cluster(jnp.zeros((BATCH, num_positions, CHANNELS)))


def test_memory_holds_distances_but_not_differences():
    batch, positions, channels = 4, 64, 16
    latent = jax.ShapeDtypeStruct((batch, positions, channels), jnp.float32)
    temporary = cluster.lower(latent).compile().memory_analysis().temp_size_in_bytes
    distances = 4 * batch * positions**2
    assert 0 < temporary < 4 * distances < channels * distances


@pytest.mark.parametrize("name", clustering.CLUSTERINGS)
def test_every_clustering_gives_each_image_a_structure_of_its_own_or_all_the_same(name):
    points = random_points("smooth", 16, seed=3)
    structure = jax.jit(clustering.CLUSTERINGS[name])(points)
    np.testing.assert_array_equal(np.sort(structure, axis=1), np.tile(np.arange(16), (BATCH, 1)))
    assert structure.dtype == jnp.int32
    alone = jax.jit(clustering.CLUSTERINGS[name])(points[1:2])
    np.testing.assert_array_equal(alone, structure[1:2])
    assert np.array_equal(structure[0], structure[1]) == (name in ("spatial", "random"))


def test_principal_halves_lie_apart_along_the_main_direction():
    points = random_points("white", 16, seed=4)
    structure = np.asarray(jax.jit(clustering.principal)(points))
    for image, labels in zip(points, structure, strict=True):
        for stage in range(4):
            for cluster_id in range(2**stage):
                members = labels >> (4 - stage) == cluster_id
                centred = image[members] - image[members].mean(axis=0)
                direction = np.linalg.svd(centred)[2][0]
                along = centred @ (direction * (1 if direction.sum() >= 0 else -1))
                upper = labels[members] >> (3 - stage) & 1 == 1
                assert upper.sum() * 2 == len(upper)
                assert along[upper].min() >= along[~upper].max() - 1e-4


def test_spatial_halves_are_rectangles():
    structure = np.asarray(clustering.spatial(jnp.zeros((1, 16, 1)))).reshape(4, 4)
    assert structure.tolist() == [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]
    oblong = np.asarray(clustering.spatial(jnp.zeros((1, 8, 1)))).reshape(2, 4)
    assert (oblong >> 2).tolist() == [[0, 0, 1, 1]] * 2
    assert (oblong >> 1).tolist() == [[0, 0, 2, 2], [1, 1, 3, 3]]
