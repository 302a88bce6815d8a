"""References are made of a split, written and read, as the ADM evaluation suite writes them."""

import jax
import numpy as np
import pytest

from nvg_jax import pixels, sharding
from nvg_jax.data import pipeline
from nvg_jax.errors import UserError
from nvg_jax.evaluation import reference
from nvg_jax.evaluation.small_classifier import SmallClassifier
from nvg_jax.frozen.weights import Frozen


@pytest.fixture(scope="module")
def network():
    module = SmallClassifier(8, 10, width=16)
    return Frozen(module, jax.jit(module.init)(jax.random.key(0), module.example()))


@pytest.fixture
def images(tiny_config):
    tiny_config.data.train_split = "train[:50]"
    batch = next(iter(pipeline.evaluation_batches(tiny_config.data, "train[:50]", 50)))
    return pixels.from_uint8(batch["image"])


def test_statistics_are_those_of_all_images(tiny_config, images, network, tmp_path):
    made = reference.make(tiny_config.data, network, sharding.create_mesh(), 8, "fifty digits")
    seen = jax.jit(network.module.apply)(network.variables, images)
    for found, features in ((made.pool, seen.pool), (made.spatial, seen.spatial)):
        exact = np.asarray(features, np.float64)
        np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-5)
        covariance = np.cov(exact, rowvar=False)
        np.testing.assert_allclose(found.covariance, covariance, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(made.images, pixels.to_uint8(images))

    reference.save(tmp_path / "reference.npz", made)
    read = reference.load(tmp_path / "reference.npz", 8)
    jax.tree.map(np.testing.assert_array_equal, read[:3], made[:3])
    assert read.source == "fifty digits" and read.features is None
    looked_at = reference.looked_at(read, network, sharding.create_mesh(), 8)
    np.testing.assert_array_equal(looked_at.features, made.features)
    with np.load(tmp_path / "reference.npz", allow_pickle=False) as arrays:
        assert {"arr_0", "mu", "sigma", "mu_s", "sigma_s"} < set(arrays)
        assert arrays["arr_0"].dtype == np.uint8


def test_of_many_images_some_are_kept_evenly_spaced(
    tiny_config, images, network, tmp_path, monkeypatch
):
    monkeypatch.setattr(reference, "_NUM_IMAGES", 20)
    made = reference.make(tiny_config.data, network, sharding.create_mesh(), 8, "")
    np.testing.assert_array_equal(made.images, pixels.to_uint8(images)[::3])
    seen = jax.jit(network.module.apply)(network.variables, images[::3])
    np.testing.assert_allclose(made.features, seen.pool, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros(3)}, "is no reference: it has neither images .* nor statistics"),
        ({"arr_0": np.zeros((3, 4, 4, 3))}, r"arr_0 of .* is float64 \[3, 4, 4, 3\]"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, r"is uint8 \[0, 4, 4, 3\]"),
        ({"arr_0": np.array([{}], object)}, "is no .npz file"),
        (
            {"mu": np.ones(3), "sigma": np.ones(3)},
            r"mu and sigma .* are float64 \[3\] and",
        ),
        ({"mu": np.ones(3), "sigma": np.full((3, 3), np.nan)}, "of finite numbers"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, r"are <U1 \[1\] and float64 \[1, 1\]"),
    ],
)
def test_files_that_are_no_reference(arrays, message, tmp_path):
    np.savez(tmp_path / "file.npz", **arrays)
    with pytest.raises(UserError, match=message):
        reference.load(tmp_path / "file.npz", 4)


def test_the_published_reference_is_found_where_it_was_fetched_to(tiny_config, tmp_path):
    tiny_config.frozen.directory = str(tmp_path)
    tiny_config.evaluation.reference = "adm_imagenet256"
    needs = {"reference", "reference_images"}
    path = tmp_path / "downloads" / "VIRTUAL_imagenet256_labeled.npz"
    advice = f"run `python -m .*fetch adm_imagenet256 --directory={tmp_path}` first"
    with pytest.raises(UserError, match=f"{path} is not there: {advice}"):
        reference.given(tiny_config, needs)
    path.parent.mkdir()
    images, statistics = np.zeros((3, 8, 8, 3), np.uint8), {"mu": np.zeros(5), "sigma": np.eye(5)}
    np.savez(path, arr_0=images, **statistics)
    given = reference.given(tiny_config, needs)
    np.testing.assert_array_equal(given.images, images)
    np.testing.assert_array_equal(given.pool.covariance, np.eye(5))


def test_damaged_files(tmp_path):
    whole = tmp_path / "whole.npz"
    np.savez(whole, arr_0=np.zeros((3, 4, 4, 3), np.uint8))
    for name, content in (("short", whole.read_bytes()[:100]), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="is no .npz file"):
            reference.load(tmp_path / name, 4)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(UserError, match="is no .npz file"):
        reference.load(tmp_path / "array.npy", 4)


def test_what_is_kept_in_the_workdir_and_damaged_is_to_be_removed(tiny_config, network, tmp_path):
    (tmp_path / "reference.npz").write_text("")
    with pytest.raises(UserError, match="is no .npz file, .*; remove it, and it is made again$"):
        reference.of_split(tiny_config, str(tmp_path), network, sharding.create_mesh())
