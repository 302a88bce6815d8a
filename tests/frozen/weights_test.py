import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax.errors import UserError
from nvg_jax.frozen import weights
from nvg_jax.weights import save_weights


@pytest.mark.parametrize("name", ["lpips", "dino"])
def test_random_weights_are_fixed_and_give_features_of_a_sane_scale(name):
    variables = weights.load(name, random=True)
    jax.tree.map(np.testing.assert_array_equal, variables, weights.load(name, random=True))
    assert jax.tree.structure(variables) == jax.tree.structure(weights.abstract(name))

    rng = np.random.default_rng(0)
    images = [jnp.asarray(rng.uniform(-1, 1, (1, 32, 32, 3)), jnp.float32) for _ in range(2)]
    if name == "lpips":
        assert 1e-3 < weights.NETWORKS[name].module.apply(variables, *images)[0] < 1
    else:
        module = weights.NETWORKS[name].module
        readouts = module.apply(variables, images[0], method="readouts")
        assert 0.1 < readouts.std() < 100


def test_missing_weights_say_how_to_fetch_them(tmp_path, monkeypatch):
    monkeypatch.setenv("NVG_JAX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError) as error:
        weights.load("dino")
    assert str(error.value) == (
        f"no weights of dino in {tmp_path}/cache/dino: run "
        "`python -m nvg_jax.interop.fetch dino` first"
    )
    with pytest.raises(UserError, match=rf"fetch lpips --directory={tmp_path}` first$"):
        weights.load("lpips", str(tmp_path))


@pytest.mark.parametrize("file", weights.FILES.values(), ids=weights.FILES)
def test_the_docs_say_where_each_file_is_from(file):
    page = (pathlib.Path(__file__).parents[2] / "docs" / "weights.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{file.name}` |")]
    assert file.address in row and file.licence in row
    assert (file.sha256_prefix or "not published") in row


def test_default_folder_is_in_the_home(monkeypatch, tmp_path):
    monkeypatch.delenv("NVG_JAX_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(weights.weights_directory()) == f"{tmp_path}/.cache/nvg_jax"


def test_weights_of_another_network_and_damaged_ones_are_named(tmp_path):
    save_weights(tmp_path / "dino", {"params": np.zeros(3)}, "the frozen network lpips")
    with pytest.raises(UserError, match="made with the frozen network lpips"):
        weights.load("dino", str(tmp_path))
    (tmp_path / "dinov2").mkdir()
    with pytest.raises(UserError, match="dinov2 is not a .* weights directory"):
        weights.load("dinov2", str(tmp_path))
