"""Progress where the output is no terminal; pytest's is none."""

import logging
import re
import time

import pytest

from nvg_jax import progress


@pytest.fixture
def lines(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="nvg_jax.progress")
    monkeypatch.setattr(progress, "_WAITS", (0.02,))
    return lambda: [record.getMessage() for record in caplog.records]


def _until(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _is_over(lines):
    time.sleep(0.1)  # A line may be on its way.
    seen = lines()
    time.sleep(0.2)
    assert lines() == seen


def test_what_takes_long_is_said_now_and_then(lines):
    for number in progress.track(range(3), "samples"):
        _until(lambda number=number: f"samples: {number} of 3 images" in "".join(lines()))
    assert any(re.fullmatch(r"samples: 2 of 3 images after \d s", line) for line in lines())
    _is_over(lines)


def test_what_ends_early_or_fails_is_no_longer_said(lines):
    with pytest.raises(ValueError), progress.Progress("tokens", unit="batch") as shown:
        shown.update(5)
        _until(lines)
        raise ValueError
    assert re.fullmatch(r"tokens: 5 batches after \d s", lines()[0])
    for _ in progress.track(iter(range(5)), "samples"):
        break
    _is_over(lines)


def test_quiet_and_quick_things_are_silent(lines):
    for _ in progress.track(range(3), "samples", quiet=True):
        time.sleep(0.1)
    assert not lines()
