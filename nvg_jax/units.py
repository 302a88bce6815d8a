"""Numbers for people: a value in the unit that fits, and rows of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence


def _in_units(value: int | float, units: dict[str, int | float]) -> str:
    """A value in the largest of the units, from small to large, of which it is one or more."""
    fitting = [unit for unit, size in units.items() if value >= size] or list(units)[:1]
    value /= units[fitting[-1]]
    return f"{value:,.0f} {fitting[-1]}" if value >= 100 else f"{value:.3g} {fitting[-1]}"


memory = functools.partial(
    _in_units, units={"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
)
traffic = functools.partial(_in_units, units={"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9})
flops = functools.partial(
    _in_units, units={"FLOP": 1, "kFLOP": 1e3, "MFLOP": 1e6, "GFLOP": 1e9, "TFLOP": 1e12}
)
time = functools.partial(
    _in_units,
    units={"us": 1e-6, "ms": 1e-3, "s": 1, "minutes": 60, "hours": 3600, "days": 86_400},
)


def table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Names and values below a title, the values below each other."""
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])
