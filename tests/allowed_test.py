"""What the values of a config may be."""

import dataclasses
import importlib
import math
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import base, nvg_digits
from nvg_jax import allowed, jobs
from nvg_jax.errors import UserError
from nvg_jax.generator.sampler import Settings
from nvg_jax.jobs.job import check


def _leaves(config, name="config"):
    for key in config:
        value, full = config[key], f"{name}.{key}"
        yield from _leaves(value, full) if isinstance(value, ConfigDict) else [(full, value)]


_LEAVES = dict(_leaves(nvg_digits.get_config()))
_NUMBERS = [name for name, value in _LEAVES.items() if type(value) in (int, float)]


def test_every_entry_is_of_a_value():
    names = dict(_leaves(base.get_config(depth=16, epochs=1, decay_start=0.5, decay_to=0.0)))
    for end in allowed.TABLE:
        assert any(f".{name}".endswith(f".{end}") for name in names), end


@pytest.mark.parametrize("path", sorted(pathlib.Path("configs").glob("*_*.py")), ids=str)
def test_configs_are_allowed(path):
    check(importlib.import_module(f"configs.{path.stem}").get_config())


@given(st.sampled_from(_NUMBERS), st.sampled_from([-2, -0.5, math.nan, math.inf, -math.inf, 2**40]))
def test_what_no_number_may_be(name, value):
    config = nvg_digits.get_config()
    kind = type(_LEAVES[name])
    if kind is int and value != value // 1 or kind is int and not math.isfinite(value):
        return  # ml_collections itself refuses it.
    with config.ignore_type():
        config.update_from_flattened_dict({name.removeprefix("config."): kind(value)})
    with pytest.raises(UserError, match=name):
        check(config)


def test_all_mistakes_stand_in_one_line(tmp_path):
    config = nvg_digits.get_config()
    config.generator.training.log_every = 0
    config.sampling.top_p = (1.0,)
    config.sampling.classes = (1, 2.5)
    config.evaluation.metrics = ("fid", "fit")
    with pytest.raises(UserError) as raised:
        jobs.train(config, str(tmp_path))
    for name in ("training.log_every=0", "top_p=(1.0,)", "classes=(1, 2.5)", "metrics=('fid', "):
        assert name in str(raised.value)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"flow_steps": 0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"content_guidance": (1.0, math.inf)},
        {"top_p": (1.0, 1.5)},
        {"top_k": -1},
    ],
    ids=str,
)
def test_calls_from_python_are_checked(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        dataclasses.replace(Settings(), **changes)
