import logging as std_logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flax
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nvg_jax.checkpoint import TrainCheckpointer, load_weights, restore_ema, save_weights
from nvg_jax.errors import UserError
from tests.small_disk import small_disk

ARCHITECTURE = "generator(width 64, 16 positions)"
OTHER = "generator(width 96, 16 positions)"


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any
    ema: Any


def make_state(seed: int) -> State:
    """A state of its own for every seed, with an optax chain and a bfloat16 leaf."""
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {
        "dense": {"kernel": jax.random.normal(keys[0], (64, 48)), "bias": jnp.zeros(48)},
        "half": jax.random.normal(keys[1], (9, 7)).astype(jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    _, opt_state = optimizer.update(params, optimizer.init(params), params)
    ema = jax.tree.map(lambda x: x * 3, params)
    return State(jnp.int32(seed), params, opt_state, ema)


def abstract(tree):
    return jax.eval_shape(lambda: tree)


ABSTRACT = abstract(make_state(0))


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert isinstance(x, jax.Array) and x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def iterator(position: int = 0):
    dataset = grain.MapDataset.range(50).shuffle(seed=1).repeat(2).to_iter_dataset()
    data_iterator = iter(dataset.batch(4))
    for _ in range(position):
        next(data_iterator)
    return data_iterator


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


def test_empty_directory_is_made_and_restores_nothing(tmp_path):
    with TrainCheckpointer(tmp_path / "a" / "b", ARCHITECTURE, keep=2) as checkpointer:
        assert checkpointer.latest_step() is None
        assert checkpointer.restore(ABSTRACT) is None
    assert (tmp_path / "a" / "b").is_dir()


def test_round_trip_is_bit_exact_and_puts_the_iterator_back(directory):
    data_iterator = iterator()
    with TrainCheckpointer(directory, ARCHITECTURE, keep=2) as checkpointer:
        assert checkpointer.latest_step() == 20
        state, step = checkpointer.restore(ABSTRACT, data_iterator)
    assert step == 20
    assert_same(state, make_state(20))
    np.testing.assert_array_equal(next(data_iterator), next(iterator(2)))


def test_state_restores_onto_a_given_sharding(directory):
    sharding = jax.sharding.NamedSharding(
        jax.make_mesh((1,), ("data",)), jax.sharding.PartitionSpec()
    )
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), ABSTRACT
    )
    with TrainCheckpointer(directory, ARCHITECTURE, keep=2) as checkpointer:
        state, _ = checkpointer.restore(placed)
    assert_same(state, make_state(20))
    assert {leaf.sharding for leaf in jax.tree.leaves(state)} == {sharding}


def test_saving_takes_the_state_and_the_position_as_they_are_at_the_call(tmp_path):
    data_iterator = iterator(1)
    large = {"w": jax.random.normal(jax.random.key(0), (1024, 1024))}
    expected = np.asarray(large["w"]).copy()
    train_step = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    with TrainCheckpointer(tmp_path, ARCHITECTURE, keep=2) as checkpointer:
        checkpointer.save(1, large, data_iterator)
        for _ in range(3):
            large = train_step(large)
            next(data_iterator)
    restored_iterator = iterator()
    with TrainCheckpointer(tmp_path, ARCHITECTURE, keep=2) as checkpointer:
        state, _ = checkpointer.restore(abstract(large), restored_iterator)
    np.testing.assert_array_equal(state["w"], expected)
    np.testing.assert_array_equal(next(restored_iterator), next(iterator(1)))


def test_only_the_newest_are_kept_and_a_saved_step_is_not_written_again(tmp_path):
    with TrainCheckpointer(tmp_path, ARCHITECTURE, keep=2) as checkpointer:
        for step in (1, 2, 3, 4):
            checkpointer.save(step, make_state(step))
        checkpointer.save(4, make_state(5))
        assert checkpointer.latest_step() == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]
    state, step = restore(tmp_path)
    assert step == 4
    assert_same(state, make_state(4))


def test_fewer_than_two_cannot_be_kept(tmp_path):
    with pytest.raises(UserError, match="at least 2"):
        TrainCheckpointer(tmp_path, ARCHITECTURE, keep=1)


def test_half_written_steps_are_named_ignored_and_cleared_away(directory, caplog):
    for step in (25, 30):
        shutil.copytree(directory / "20", directory / f"{step}.orbax-checkpoint-tmp")
    with TrainCheckpointer(directory, ARCHITECTURE, keep=2) as checkpointer:
        assert caplog.text.count("was not written to its end and is removed") == 2
        state, step = checkpointer.restore(ABSTRACT)
        assert step == 20
        checkpointer.save(30, make_state(30))
    assert sorted(path.name for path in directory.iterdir()) == ["20", "30"]
    state, step = restore(directory)
    assert step == 30
    assert_same(state, make_state(30))


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped"])
def test_damage_to_any_file_is_noticed_and_the_older_step_used(saved, tmp_path, damage, caplog):
    names = [path.relative_to(saved / "20") for path in files(saved / "20")]
    assert {"seal", "data", "state"} == {name.parts[0] for name in names}
    for i, name in enumerate(names):
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


def test_a_flipped_bit_anywhere_is_noticed(directory):
    rng = random.Random(0)
    paths = files(directory / "20")
    sizes = [path.stat().st_size for path in paths]
    for _ in range(60):
        (path,) = rng.choices(paths, sizes)
        position, bits = rng.randrange(path.stat().st_size), 1 << rng.randrange(8)
        flip(path, position, bits)
        ema, step = restore_ema(directory, ARCHITECTURE, ABSTRACT.ema)
        assert step == 10, (path, position, bits)
        flip(path, position, bits)
    ema, step = restore_ema(directory, ARCHITECTURE, ABSTRACT.ema)
    assert step == 20
    assert_same(ema, make_state(20).ema)


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
        assert sorted(path.name for path in directory.iterdir()) == ["10", "20", "20.damaged"]
        state, step = restore(directory)
        assert step == 20
        assert_same(state, make_state(20 + spoiled))


def test_with_every_step_damaged_nothing_is_touched_and_the_user_told(directory):
    (directory / "10" / "seal").unlink()
    (directory / "20" / "state" / "_METADATA").unlink()
    with pytest.raises(UserError, match="damaged.*_METADATA is missing.*seal is missing") as error:
        restore(directory)
    assert str(directory) in str(error.value) and "remove the directory" in str(error.value)
    with pytest.raises(UserError, match="damaged"):
        restore_ema(directory, ARCHITECTURE, ABSTRACT.ema)
    assert sorted(path.name for path in directory.iterdir()) == ["10", "20"]


def test_another_architecture_is_named_before_any_array_is_read(directory):
    shutil.rmtree(directory / "20" / "state")
    for read in (
        lambda: restore(directory, architecture=OTHER),
        lambda: restore_ema(directory, OTHER, {"other": jax.ShapeDtypeStruct((1,), jnp.int32)}),
    ):
        with pytest.raises(UserError) as error:
            read()
        message = str(error.value)
        assert ARCHITECTURE in message and OTHER in message and "--workdir" in message
    assert sorted(path.name for path in directory.iterdir()) == ["10", "20"]


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
    with pytest.raises(UserError, match="does not fit.*ema/(more|half)"):
        restore_ema(directory, ARCHITECTURE, change(ABSTRACT.ema))


def test_ema_alone_is_restored_in_the_type_asked_for(directory):
    ema, step = restore_ema(directory, ARCHITECTURE, ABSTRACT.ema)
    assert step == 20
    assert_same(ema, make_state(20).ema)
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), ABSTRACT.ema)
    ema, _ = restore_ema(directory, ARCHITECTURE, half)
    assert_same(ema, jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_state(20).ema))


def test_ema_falls_back_without_changing_the_directory(directory, caplog):
    (directory / "20" / "state" / "_METADATA").unlink()
    before = sorted(directory.rglob("*"))
    ema, step = restore_ema(directory, ARCHITECTURE, ABSTRACT.ema)
    assert step == 10
    assert_same(ema, make_state(10).ema)
    assert "step 20 is damaged" in caplog.text
    assert sorted(directory.rglob("*")) == before


def test_ema_without_a_checkpoint_says_to_train_first(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in .*none: train first"):
        restore_ema(tmp_path / "none", ARCHITECTURE, ABSTRACT.ema)
    assert not (tmp_path / "none").exists()


def test_weights_round_trip(tmp_path):
    variables = {"params": make_state(1).params, "scales": jnp.arange(5.0)}
    save_weights(tmp_path / "out" / "weights", variables, ARCHITECTURE)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = abstract(variables)
    assert_same(load_weights(tmp_path / "out" / "weights", wanted, ARCHITECTURE), variables)
    wanted["scales"] = jax.ShapeDtypeStruct((5,), jnp.float16, sharding=sharding)
    scales = load_weights(tmp_path / "out" / "weights", wanted, ARCHITECTURE)["scales"]
    assert scales.dtype == jnp.float16 and scales.sharding == sharding


def test_weights_refuse_what_is_wrong(tmp_path, directory):
    variables = {"kernel": jnp.ones((3, 4))}
    weights = tmp_path / "weights"
    weights.mkdir()
    save_weights(weights, variables, ARCHITECTURE)
    with pytest.raises(UserError, match="exists already"):
        save_weights(weights, variables, ARCHITECTURE)
    with pytest.raises(UserError, match="exists already"):
        save_weights(weights / "seal", variables, ARCHITECTURE)
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


@pytest.fixture
def disk(tmp_path):
    """Holds four checkpoints of `make_state`, and a few of 2 MB."""
    with small_disk(tmp_path, "8m") as mounted:
        yield mounted


LARGE = {"w": jax.ShapeDtypeStruct((500_000,), jnp.float32)}


def make_large(step: int):
    """Noise, which cannot be compressed."""
    return {"w": jax.random.normal(jax.random.key(step), (500_000,))}


def lines(caplog, level: int = std_logging.WARNING) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= level]
    caplog.clear()
    return found


@pytest.mark.parametrize("left", [0, 40_000, 1_000_000])
def test_a_full_disk_costs_one_checkpoint_and_is_said(disk, caplog, left):
    """Whether nothing fits any more, or some of the files."""
    caplog.set_level(std_logging.INFO, logger="nvg_jax")
    directory = disk.path / "checkpoints"
    with TrainCheckpointer(directory, ARCHITECTURE, keep=2) as checkpointer:
        checkpointer.save(1, make_large(1), iterator(1))
        checkpointer.save(2, make_large(2), iterator(2))
        assert checkpointer.wait() is None
        disk.fill(leave=left)
        checkpointer.save(3, make_large(3), iterator(3))
        checkpointer.save(4, make_large(4), iterator(4))
        (line,) = lines(caplog)
        assert "saving step 3 failed (No space left on device): step 2 stays usable" in line
        assert "training goes on" in line
        problem = checkpointer.wait()
        assert "saving step 4 failed (No space left on device): step 2 stays" in problem
        assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]
        disk.free()
        checkpointer.save(5, make_large(5), iterator(5))
        assert checkpointer.wait() is None
        assert "saving works again: step 5" in lines(caplog, std_logging.INFO)[-1]
        checkpointer.save(6, make_large(6), iterator(6))
    assert lines(caplog, std_logging.INFO) == []
    assert sorted(path.name for path in directory.iterdir()) == ["5", "6"]
    data_iterator = iterator()
    with TrainCheckpointer(directory, ARCHITECTURE, keep=2) as checkpointer:
        state, step = checkpointer.restore(LARGE, data_iterator)
    assert step == 6
    assert_same(state, make_large(6))
    np.testing.assert_array_equal(next(data_iterator), next(iterator(6)))


def test_a_failed_save_is_noticed_without_another(disk, caplog):
    with TrainCheckpointer(disk.path / "c", ARCHITECTURE, keep=2) as checkpointer:
        disk.fill()
        checkpointer.save(1, make_large(1))
        deadline = time.time() + 30
        while not caplog.records and time.time() < deadline:
            checkpointer.check()
            time.sleep(0.01)
        (line,) = lines(caplog)
        assert "step 1 failed (No space left on device): nothing is saved yet" in line
        checkpointer.check()
        assert checkpointer.wait() is None
    assert lines(caplog) == [] and list((disk.path / "c").iterdir()) == []


def test_a_disk_that_becomes_read_only_ends_nothing(disk, caplog):
    directory = disk.path / "checkpoints"
    with TrainCheckpointer(directory, ARCHITECTURE, keep=2) as checkpointer:
        checkpointer.save(1, make_state(1), iterator(1))
        assert checkpointer.wait() is None
        disk.make_writable(False)
        checkpointer.save(2, make_state(2), iterator(2))
        assert "step 2 failed (Read-only file system): step 1 stays" in checkpointer.wait()
        state, step = checkpointer.restore(ABSTRACT)
        assert step == 1
        assert_same(state, make_state(1))
        disk.make_writable(True)
        checkpointer.save(3, make_state(3), iterator(3))
        assert checkpointer.wait() is None
    assert sorted(path.name for path in directory.iterdir()) == ["1", "3"]
    assert lines(caplog) == []


def test_a_directory_that_cannot_be_made_is_a_mistake(disk, tmp_path):
    disk.make_writable(False)
    (tmp_path / "file").touch()
    for place, reason in ((disk.path, "Read-only file system"), (tmp_path / "file", "Not a dir")):
        with pytest.raises(UserError, match=f"no checkpoint can be written to .*{reason}.*workdir"):
            TrainCheckpointer(place / "checkpoints", ARCHITECTURE, keep=2)


@settings(max_examples=20)
@given(data=st.data())
def test_random_damage_is_noticed_and_the_older_step_used(saved, tmp_path_factory, data):
    """Any stretch of any file is overwritten or cut out."""
    directory = tmp_path_factory.mktemp("damaged") / "checkpoints"
    shutil.copytree(saved, directory)
    path = data.draw(st.sampled_from(files(directory / "20")))
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content) - 1))
    stop = data.draw(st.integers(start + 1, min(start + 100, len(content))))
    garbage = data.draw(st.binary(max_size=stop - start))
    spoiled = content[:start] + garbage + content[stop:]
    assume(spoiled != content)
    path.write_bytes(spoiled)
    state, step = restore(directory)
    assert step == 10
    assert_same(state, make_state(10))
    shutil.rmtree(directory)


def run_python(code: str, *arguments, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


SAVE_FOR_EVER = """
import sys, itertools
import jax.numpy as jnp
from nvg_jax.checkpoint import TrainCheckpointer

with TrainCheckpointer(sys.argv[1], "line", keep=2) as checkpointer:
    for step in itertools.count():
        checkpointer.save(step, {"w": jnp.arange(4_000_000.0) + step})
"""


def test_killed_while_saving_goes_on_from_the_step_before(tmp_path):
    process = run_python(SAVE_FOR_EVER, tmp_path)
    try:
        deadline = time.time() + 60
        while process.poll() is None and time.time() < deadline:
            time.sleep(0.001)
            unfinished = [path.name.split(".")[0] for path in tmp_path.glob("*tmp*")]
            if unfinished and int(unfinished[0]) >= 3 and any(tmp_path.glob("*tmp*/state/**/d/*")):
                process.send_signal(signal.SIGSTOP)  # look again: it may have been renamed
                if any(tmp_path.glob("*tmp*/state/**/d/*")):
                    break
                process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    (half_written,) = tmp_path.glob("*tmp*")
    killed_step = int(half_written.name.split(".")[0])

    wanted = {"w": jax.ShapeDtypeStruct((4_000_000,), jnp.float32)}
    with TrainCheckpointer(tmp_path, "line", keep=2) as checkpointer:
        state, step = checkpointer.restore(wanted)
        assert step == killed_step - 1
        np.testing.assert_array_equal(state["w"], np.arange(4_000_000.0, dtype=np.float32) + step)
        checkpointer.save(killed_step, state)
    assert not half_written.exists()
    with TrainCheckpointer(tmp_path, "line", keep=2) as checkpointer:
        assert checkpointer.restore(wanted)[1] == killed_step


ACROSS_SHARDINGS = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from nvg_jax.checkpoint import TrainCheckpointer, restore_ema

assert jax.device_count() == 8
eight = Mesh(np.array(jax.devices()), ("x",))
two = Mesh(np.array(jax.devices()[3:5]), ("x",))
w = jax.random.normal(jax.random.key(0), (64, 32))
expected = np.asarray(w)
with TrainCheckpointer(sys.argv[1], "line", keep=2) as checkpointer:
    checkpointer.save(1, {"ema": jax.device_put(w, NamedSharding(eight, P("x")))})
for sharding in (NamedSharding(two, P(None, "x")), NamedSharding(eight, P()), None):
    wanted = jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=sharding)
    with TrainCheckpointer(sys.argv[1], "line", keep=2) as checkpointer:
        state, step = checkpointer.restore({"ema": wanted})
    ema, _ = restore_ema(sys.argv[1], "line", wanted)
    for restored in (state["ema"], ema):
        assert np.asarray(restored).tobytes() == expected.tobytes()
        assert sharding is None or restored.sharding == sharding
"""


def test_arrays_of_eight_devices_restore_onto_others_and_quietly(tmp_path):
    process = run_python(
        ACROSS_SHARDINGS, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=8"
    )
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output == "" and "absl" not in errors and "orbax" not in errors


def test_orbax_is_quiet_at_absl_default_verbosity(directory, caplog):
    assert logging.get_verbosity() <= logging.WARNING
    with TrainCheckpointer(directory, ARCHITECTURE, keep=2) as checkpointer:
        checkpointer.restore(ABSTRACT, iterator())
        checkpointer.save(30, make_state(30), iterator())
    restore_ema(directory, ARCHITECTURE, ABSTRACT.ema)
    assert caplog.records == []
