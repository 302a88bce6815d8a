"""The loop around a task that is a single number."""

import collections
import logging
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import nvg_digits
from nvg_jax import files, sharding
from nvg_jax.data.stream import Order
from nvg_jax.errors import Preempted, UserError
from nvg_jax.training import loop
from nvg_jax.training.state import TrainState
from tests.small_disk import small_disk


class Counting:
    """Moves a number by the batch's mean and some noise; the loss is bad at step `bad_step`."""

    name = "generator"
    architecture = "one number"
    frozen = None

    def __init__(self, bad_step: int = -1):
        self.optimizer = optax.sgd(1.0)
        self.bad_step = bad_step

    def init_state(self, key, variables=None):
        variables = variables or {"params": {"w": jax.random.normal(key, ())}}
        return TrainState.create(variables, self.optimizer)

    def step(self, state, frozen, batch, key):
        gradient = jnp.mean(batch["image"]) + jax.random.normal(key, ())
        state = state.update({"w": gradient}, self.optimizer, 0.9)
        loss = jnp.where(state.step == self.bad_step, jnp.inf, 1.0)
        return state, {"loss": loss, "token_counts": jnp.ones((2, 2), jnp.int32)}

    def without_remat(self):
        return self

    def pictures(self, state, batch):
        return {}


@pytest.fixture
def train(digits_dir, tmp_path):
    """Brings a task to step ten on a real pipeline; `train.steps` says how many that took."""
    from nvg_jax.data import pipeline

    config = nvg_digits.get_config()
    config.data.data_dir = digits_dir
    training = config.generator.training
    training.checkpoint_every, training.log_every, training.image_every = 3, 5, 100

    def run(task=None, directory="run", stop=lambda: False, **arguments):
        run.steps = 0

        def counting_stop():  # It is asked once a step.
            run.steps += 1
            return stop()

        return loop.train(
            task or Counting(),
            training,
            loop.Schedule(batch_size=4, num_steps=10, epoch_steps=5),
            pipeline.train_iterator(config.data, Order(4, seed=0)),
            str(tmp_path / directory),
            sharding.create_mesh(),
            jax.random.key(0),
            stop=counting_stop,
            **arguments,
        )

    return run


def test_the_first_state_and_the_step_are_traced_once(train):
    traced = collections.Counter()

    class Seen(Counting):
        def init_state(self, *args):
            traced["init_state"] += 1
            return super().init_state(*args)

        def step(self, *args):
            traced["step"] += 1
            return super().step(*args)

    train(Seen())
    assert traced == {"init_state": 1, "step": 1}


def test_an_interrupted_run_ends_like_an_uninterrupted_one(train):
    expected = train()
    steps = iter(range(100))
    with pytest.raises(Preempted, match="saved step 5 of 10"):
        train(directory="other", stop=lambda: next(steps) == 4)
    assert train.steps == 5
    resumed = train(directory="other")
    assert train.steps == 5
    jax.tree.map(np.testing.assert_array_equal, resumed, expected)


def test_nothing_is_done_twice(train):
    train()
    train()
    assert train.steps == 0


def test_a_bad_loss_names_the_step_and_what_is_kept(train):
    with pytest.raises(UserError, match=r"generator is inf at step 8: .*step 6 is kept"):
        train(Counting(bad_step=8))


def test_training_can_start_from_given_variables(train):
    given = {"params": {"w": jnp.float32(100.0)}}
    far = train(initial=lambda: given)
    near = train(directory="other")
    assert far.params["w"] - near.params["w"] > 90


def test_finish_changes_what_is_kept(train):
    train(finish=lambda state: state.replace(ema={"params": {"w": jnp.float32(5)}}))
    assert float(train().ema["params"]["w"]) == 5.0


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path, "2m") as mounted:
        yield mounted


def after_steps(actions):
    """A question whether to stop that does something at a step, and says yes if that does."""
    steps = iter(range(1, 100))
    return lambda: bool(actions.get(next(steps), lambda: None)())


def fill_once_saved(disk, step):
    """Fills the disk, but only when a step's checkpoint is whole."""
    while not (disk.path / "run" / "checkpoints" / str(step)).exists():
        time.sleep(0.01)
    disk.fill()


def test_training_outlives_a_full_disk(train, disk, caplog):
    caplog.set_level(logging.INFO, logger="nvg_jax")
    expected = train()
    caplog.clear()
    fill_and_free = after_steps({4: lambda: fill_once_saved(disk, 3), 7: disk.free})
    state = train(directory=disk.path / "run", stop=fill_and_free)
    assert train.steps == 10
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len([line for line in warnings if "saving step 6 failed (No space left" in line]) == 1
    # A summary may fit what is left of a block.
    assert len(warnings) == 1 + len([line for line in warnings if "no summaries can be" in line])
    assert "saving works again: step 9" in caplog.text
    again = train(directory=disk.path / "run")
    jax.tree.map(np.testing.assert_array_equal, again, expected)
    assert train.steps == 0


def test_work_that_cannot_be_kept_is_an_error(train, disk):
    expected = train()
    fill = after_steps({7: lambda: fill_once_saved(disk, 6)})
    with pytest.raises(UserError, match=r"saving step 10 failed \(No space.*step 6 stays.*again"):
        train(directory=disk.path / "run", stop=fill)
    disk.free()
    again = train(directory=disk.path / "run")
    jax.tree.map(np.testing.assert_array_equal, again, expected)
    assert train.steps == 4


def test_a_stop_that_cannot_be_kept_is_an_error(train, disk):
    fill_and_stop = after_steps({4: lambda: fill_once_saved(disk, 3), 5: lambda: True})
    with pytest.raises(UserError, match=r"saving step 5 failed \(No space.*step 3 stays usable"):
        train(directory=disk.path / "run", stop=fill_and_stop)


def test_a_directory_that_cannot_be_written_is_a_mistake(train, disk):
    def begin():
        files.write_text(disk.path / "config.json", "{}" * 9000)

    disk.fill(leave=8192)
    with pytest.raises(UserError, match=r"config.json cannot be written \(No space left on device"):
        train(directory=disk.path / "run", begin=begin)
    assert {path.name for path in disk.path.iterdir()} == {"run", "filler"}


def test_schedule_counts_whole_batches():
    config = nvg_digits.get_config().generator.training
    config.batch_size, config.epochs = 100, 2.5
    assert loop.Schedule.create(config, 1437) == loop.Schedule(100, 35, 14)
