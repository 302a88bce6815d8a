"""Weights as safetensors files: what they hold, and what is refused."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from nvg_jax.errors import UserError
from nvg_jax.weights import load_weights, save_weights, saved_architecture
from tests.small_disk import small_disk
from tests.states import ARCHITECTURE, abstract, assert_same, make_state

OTHER = "generator(width 96, 16 positions)"
VARIABLES = {
    "params": make_state(1).params | {"transposed": jnp.arange(6.0).reshape(2, 3).T},
    "stats": {"scales": jnp.arange(5.0), "scalar": jnp.float32(3), "none": jnp.zeros((0, 3))},
}


@pytest.fixture
def path(tmp_path):
    save_weights(tmp_path / "out" / "a.safetensors", VARIABLES, ARCHITECTURE)
    return tmp_path / "out" / "a.safetensors"


def load(path, architecture=ARCHITECTURE, variables=VARIABLES):
    return load_weights(path, abstract(variables), architecture)


def test_round_trip(path):
    assert saved_architecture(path) == ARCHITECTURE
    assert_same(load(path), VARIABLES)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = abstract(VARIABLES)
    wanted["stats"]["scales"] = jax.ShapeDtypeStruct((5,), jnp.float16, sharding=sharding)
    scales = load_weights(path, wanted, ARCHITECTURE)["stats"]["scales"]
    assert scales.dtype == jnp.float16 and scales.sharding == sharding
    np.testing.assert_array_equal(scales, np.arange(5))


def test_others_can_read_it(path):
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["architecture"] == ARCHITECTURE
        np.testing.assert_array_equal(file.get_tensor("stats/scales"), np.arange(5, dtype="f4"))
        assert file.get_tensor("params/half").dtype == jnp.bfloat16


def test_what_is_there_stays(path):
    before = path.read_bytes()
    with pytest.raises(UserError, match="a.safetensors exists already"):
        save_weights(path, VARIABLES, ARCHITECTURE)
    assert path.read_bytes() == before


def test_a_full_disk_leaves_nothing(tmp_path):
    variables = {"kernel": jax.random.normal(jax.random.key(0), (512, 512))}
    with small_disk(tmp_path, "4m") as disk:
        disk.fill(leave=500_000)
        with pytest.raises(UserError, match="a.safetensors cannot be written .No space left"):
            save_weights(disk.path / "a.safetensors", variables, ARCHITECTURE)
        disk.free()
        save_weights(disk.path / "a.safetensors", variables, ARCHITECTURE)
        assert [path.name for path in disk.path.iterdir()] == ["a.safetensors"]
        assert_same(load(disk.path / "a.safetensors", variables=variables), variables)


def test_files_that_are_none_of_ours(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps(print))
    save_file({"x": np.zeros(3)}, tmp_path / "foreign.safetensors")
    for name, message in {
        "nothing": "nothing.safetensors is not a file: name one that --job=export",
        "folder": "folder.safetensors is not a file",
        "pickle": "damaged weights: .*pickle.safetensors .*header",
        "foreign": "foreign.safetensors does not say what it is: name a file that --job=export",
    }.items():
        for read in (load, saved_architecture):
            with pytest.raises(UserError, match=message):
                read(tmp_path / f"{name}.safetensors")


def test_other_weights(path):
    with pytest.raises(UserError) as error:
        load(path, OTHER)
    assert f"made with {ARCHITECTURE}, but this config is for {OTHER}" in str(error.value)
    without = {"params": VARIABLES["params"], "stats": {"scales": jnp.arange(5.0)}}
    more = VARIABLES | {"more": jnp.zeros(2)}
    other = VARIABLES | {"stats": VARIABLES["stats"] | {"scalar": jnp.zeros(1)}}
    for variables, message in (
        (without, r"2 array\(s\); the first is stats/none: \(0, 3\) there, absent here"),
        (more, r"1 array\(s\); the first is more: absent there, \(2,\) here"),
        (other, r"the first is stats/scalar: \(\) there, \(1,\) here"),
    ):
        with pytest.raises(UserError, match=f"a.safetensors does not fit .*{message}"):
            load(path, variables=variables)


def test_every_byte_counts(path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little") + 8
    padding = length - len(content[:length].rstrip(b" "))
    positions = [*range(length - padding), *range(length, len(content), 97), len(content) - 1]
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="a.safetensors") as error:
            load(path)
        assert len(str(error.value).splitlines()) == 1
    for damaged in (b"", content[:3], content[: length - 9], content[:-1], content + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged weights: .*a.safetensors"):
            load(path)
    path.write_bytes(content)
    assert_same(load(path), VARIABLES)
