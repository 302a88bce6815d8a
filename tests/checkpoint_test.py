"""Checkpoints and weights: written, read, damaged, of another architecture."""

import dataclasses
import os
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax.checkpoint import TrainCheckpointer, restore_ema
from nvg_jax.errors import UserError
from nvg_jax.weights import load_weights, save_weights
from tests.small_disk import small_disk
from tests.states import ABSTRACT, ARCHITECTURE, abstract, assert_same, iterator, make_state

OTHER = "generator(width 96, 16 positions)"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with the steps 10 and 20, each with `step // 10` batches read."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    with TrainCheckpointer(directory, ARCHITECTURE, keep=2) as checkpointer:
        for step in (10, 20):
            checkpointer.save(step, make_state(step), iterator(step // 10))
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    """A copy of `saved` to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def restore(directory, data_iterator=None, architecture=ARCHITECTURE):
    with TrainCheckpointer(directory, architecture, keep=2) as checkpointer:
        return checkpointer.restore(ABSTRACT, data_iterator)


def flip(path: Path, position: int, bits: int = 0x10) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= bits
    path.write_bytes(bytes(content))


def files(step_directory: Path) -> list[Path]:
    """What Orbax or we would read; the top level's other files are only about metrics."""
    found = [p for p in sorted(step_directory.rglob("*")) if p.is_file()]
    return [p for p in found if p.parent != step_directory or p.name == "seal"]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_empty_directory_is_made_and_restores_nothing(tmp_path):
    with TrainCheckpointer(tmp_path / "a" / "b", ARCHITECTURE, keep=2) as checkpointer:
        assert checkpointer.latest_step() is None
        assert checkpointer.restore(ABSTRACT) is None
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(UserError, match="at least 2"):
        TrainCheckpointer(tmp_path, ARCHITECTURE, keep=1)


def test_round_trip_is_bit_exact_and_puts_the_iterator_back(directory):
    data_iterator = iterator()
    with TrainCheckpointer(directory, ARCHITECTURE, keep=2) as checkpointer:
        assert checkpointer.latest_step() == 20
        state, step = checkpointer.restore(ABSTRACT, data_iterator)
    assert step == 20
    assert_same(state, make_state(20))
    np.testing.assert_array_equal(next(data_iterator), next(iterator(2)))


def test_saving_takes_the_state_and_the_position_as_they_are_at_the_call(tmp_path):
    data_iterator = iterator(1)
    state = dataclasses.replace(
        make_state(1), ema=jax.random.normal(jax.random.key(0), (1024, 1024))
    )
    wanted, expected = abstract(state), np.asarray(state.ema).copy()
    train_step = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    with TrainCheckpointer(tmp_path, ARCHITECTURE, keep=2) as checkpointer:
        checkpointer.save(1, state, data_iterator)
        for _ in range(3):
            state = train_step(state)
            next(data_iterator)
    restored_iterator = iterator()
    with TrainCheckpointer(tmp_path, ARCHITECTURE, keep=2) as checkpointer:
        state, _ = checkpointer.restore(wanted, restored_iterator)
    np.testing.assert_array_equal(state.ema, expected)
    assert_same(state.params, make_state(1).params)
    np.testing.assert_array_equal(next(restored_iterator), next(iterator(1)))


def test_only_the_newest_are_kept(tmp_path):
    with TrainCheckpointer(tmp_path, ARCHITECTURE, keep=2) as checkpointer:
        for step in (1, 2, 3, 4):
            checkpointer.save(step, make_state(step))
    assert names(tmp_path) == ["3", "4"]
    state, step = restore(tmp_path)
    assert step == 4
    assert_same(state, make_state(4))


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped"])
def test_damage_to_any_file_is_noticed_and_the_older_step_used(saved, tmp_path, damage, caplog):
    found = [path.relative_to(saved / "20") for path in files(saved / "20")]
    assert {"seal", "data", "ema", "state"} == {name.parts[0] for name in found}
    for i, name in enumerate(found):
        directory = Path(shutil.copytree(saved, tmp_path / str(i)))
        path = directory / "20" / name
        if damage == "missing":
            path.unlink()
        elif damage == "flipped":
            flip(path, path.stat().st_size // 2)
        else:
            os.truncate(path, path.stat().st_size // 2 if damage == "truncated" else 0)
        data_iterator = iterator()
        caplog.clear()
        state, step = restore(directory, data_iterator)
        assert step == 10
        assert_same(state, make_state(10))
        np.testing.assert_array_equal(next(data_iterator), next(iterator(1)))
        (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
        assert f"step 20 is damaged ({path}" in warning.getMessage()
        assert "step 10 instead" in warning.getMessage()


def test_a_flipped_bit_anywhere_is_noticed_by_those_who_read_it(directory):
    rng = random.Random(0)
    paths = files(directory / "20")
    sizes = [path.stat().st_size for path in paths]
    seen = set()
    for _ in range(60):
        (path,) = rng.choices(paths, sizes)
        position, bits = rng.randrange(path.stat().st_size), 1 << rng.randrange(8)
        flip(path, position, bits)
        ema, step = restore_ema(directory, ARCHITECTURE, ABSTRACT.ema)
        item = path.relative_to(directory / "20").parts[0]
        assert step == (10 if item in ("ema", "seal") else 20), (path, position, bits)
        assert_same(ema, make_state(step).ema)
        seen.add(item)
        flip(path, position, bits)
    assert {"ema", "state"} <= seen


def test_a_directory_without_files_counts_as_damaged(directory):
    (directory / "30").mkdir()
    (directory / "40" / "state").mkdir(parents=True)
    assert restore(directory)[1] == 20


def test_a_damaged_step_is_set_aside_and_can_be_saved_again(directory):
    for spoiled in (1, 2):  # the second time there is a 20.damaged already
        (directory / "20" / "state" / "_METADATA").unlink()
        with TrainCheckpointer(directory, ARCHITECTURE, keep=2) as checkpointer:
            assert checkpointer.restore(ABSTRACT)[1] == 10
            assert checkpointer.latest_step() == 10
            checkpointer.save(20, make_state(20 + spoiled))
        assert names(directory) == ["10", "20", "20.damaged"]
        state, step = restore(directory)
        assert step == 20
        assert_same(state, make_state(20 + spoiled))


def test_with_every_step_damaged_nothing_is_touched_and_the_user_told(directory):
    (directory / "10" / "seal").unlink()
    (directory / "20" / "ema" / "_METADATA").unlink()
    for read in (
        lambda: restore(directory),
        lambda: restore_ema(directory, ARCHITECTURE, ABSTRACT.ema),
    ):
        with pytest.raises(UserError, match="damaged.*_METADATA is missing.*seal is miss") as error:
            read()
        assert str(directory) in str(error.value) and "remove the directory" in str(error.value)
    assert names(directory) == ["10", "20"]


def test_another_architecture_is_named_before_any_array_is_read(directory):
    shutil.rmtree(directory / "20" / "ema")
    for read in (
        lambda: restore(directory, architecture=OTHER),
        lambda: restore_ema(directory, OTHER, {"other": jax.ShapeDtypeStruct((1,), jnp.int32)}),
    ):
        with pytest.raises(UserError) as error:
            read()
        message = str(error.value)
        assert ARCHITECTURE in message and OTHER in message and "--workdir" in message
    assert names(directory) == ["10", "20"]


@pytest.mark.parametrize(
    "change",
    [
        lambda ema: ema | {"more": jax.ShapeDtypeStruct((2,), jnp.float32)},
        lambda ema: {"dense": ema["dense"]},
        lambda ema: ema | {"half": jax.ShapeDtypeStruct((7, 9), jnp.bfloat16)},
    ],
    ids=["more", "fewer", "other shape"],
)
def test_other_arrays_under_the_same_architecture_are_named(directory, change):
    with pytest.raises(UserError, match="20/ema does not fit.*the first is (more|half)"):
        restore_ema(directory, ARCHITECTURE, change(ABSTRACT.ema))


def test_ema_alone_is_restored_in_the_type_asked_for(directory):
    shutil.rmtree(directory / "20" / "state")  # It is not even looked at.
    ema, step = restore_ema(directory, ARCHITECTURE, ABSTRACT.ema)
    assert step == 20
    assert_same(ema, make_state(20).ema)
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), ABSTRACT.ema)
    ema, _ = restore_ema(directory, ARCHITECTURE, half)
    assert_same(ema, jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_state(20).ema))


def test_ema_falls_back_without_changing_the_directory(directory, caplog):
    (directory / "20" / "ema" / "_METADATA").unlink()
    before = sorted(directory.rglob("*"))
    ema, step = restore_ema(directory, ARCHITECTURE, ABSTRACT.ema)
    assert step == 10
    assert_same(ema, make_state(10).ema)
    assert "step 20 is damaged" in caplog.text
    assert sorted(directory.rglob("*")) == before


def test_ema_without_a_checkpoint_says_to_train_first(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in .*none: train first"):
        restore_ema(tmp_path / "none", ARCHITECTURE, ABSTRACT.ema)
    assert names(tmp_path) == []


def test_weights_round_trip(tmp_path):
    variables = {"params": make_state(1).params, "scales": jnp.arange(5.0)}
    save_weights(tmp_path / "out" / "weights", variables, ARCHITECTURE)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = abstract(variables)
    assert_same(load_weights(tmp_path / "out" / "weights", wanted, ARCHITECTURE), variables)
    wanted["scales"] = jax.ShapeDtypeStruct((5,), jnp.float16, sharding=sharding)
    scales = load_weights(tmp_path / "out" / "weights", wanted, ARCHITECTURE)["scales"]
    assert scales.dtype == jnp.float16 and scales.sharding == sharding


def test_weights_that_a_full_disk_cut_off_are_replaced(tmp_path):
    variables = {"kernel": jax.random.normal(jax.random.key(0), (512, 512))}
    with small_disk(tmp_path, "4m") as disk:
        disk.fill(leave=500_000)
        with pytest.raises(UserError, match="weights cannot be written .No space left"):
            save_weights(disk.path / "weights", variables, ARCHITECTURE)
        disk.free()
        save_weights(disk.path / "weights", variables, ARCHITECTURE)
        loaded = load_weights(disk.path / "weights", abstract(variables), ARCHITECTURE)
        assert_same(loaded, variables)


def test_weights_refuse_what_is_wrong(tmp_path, directory):
    variables = {"kernel": jnp.ones((3, 4))}
    weights = tmp_path / "weights"
    weights.mkdir()
    save_weights(weights, variables, ARCHITECTURE)
    for place in (weights, weights / "seal"):
        with pytest.raises(UserError, match="exists already"):
            save_weights(place, variables, ARCHITECTURE)
    for place in (tmp_path / "nothing", directory, directory / "20", weights / "seal"):
        with pytest.raises(UserError, match="is not a .*weights directory"):
            load_weights(place, abstract(variables), ARCHITECTURE)
    with pytest.raises(UserError) as error:
        load_weights(weights, abstract(variables), OTHER)
    assert ARCHITECTURE in str(error.value) and OTHER in str(error.value)
    with pytest.raises(UserError, match="does not fit.*kernel"):
        load_weights(weights, {"kernel": jax.ShapeDtypeStruct((4, 3), jnp.float32)}, ARCHITECTURE)
    for path in files(weights):
        flip(path, path.stat().st_size // 2)
        with pytest.raises(UserError, match=f"damaged weights: {path}"):
            load_weights(weights, abstract(variables), ARCHITECTURE)
        flip(path, path.stat().st_size // 2)
    assert_same(load_weights(weights, abstract(variables), ARCHITECTURE), variables)
