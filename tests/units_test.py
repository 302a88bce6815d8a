"""Numbers for people."""

import pytest

from nvg_jax import units


@pytest.mark.parametrize(
    ("show", "value", "expected"),
    [
        (units.memory, 0, "0 B"),
        (units.memory, 1023, "1,023 B"),
        (units.memory, 5.5 * 2**20, "5.5 MiB"),
        (units.traffic, 419.7e9, "420 GB"),
        (units.flops, 4.21e6, "4.21 MFLOP"),
        (units.flops, 10_908e12, "10,908 TFLOP"),
        (units.time, 2.5e-7, "0.25 us"),
        (units.time, 0.0382, "38.2 ms"),
        (units.time, 3.459 * 86_400, "3.46 days"),
    ],
)
def test_numbers_have_units_that_fit(show, value, expected):
    assert show(value) == expected
