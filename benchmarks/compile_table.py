"""A Markdown table of what `--job=compile` has found, a row for each task of each run.

    python -m benchmarks.compile_table --workdirs=runs/d16_v5e,runs/d24_v5e

takes workdirs with a `compile.json`, and needs neither device nor compiler.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from absl import flags
from etils import epath

from benchmarks import markdown
from nvg_jax import cli, units
from nvg_jax.errors import UserError

_WORKDIRS = flags.DEFINE_list("workdirs", [], "Of runs of --job=compile.")
_TRAINING = (
    *("run", "step of", "devices", "batch", "memory a device", "a step at least", "images/s"),
    "utilisation at most",
)
_SAMPLING = ("run", "one", "images at once", "memory", "at least", "images/s", "of which structure")


def training_row(run: str, report: dict[str, Any]) -> tuple[str, ...]:
    """What a training step takes; the utilisation is that of the published peak."""
    seconds = report["seconds"]
    row = (run, report["task"], report["topology"], f"{report['batch_size']:,}")
    row += (_memory(report["memory"], report["limit"]),)
    if not seconds:
        return (*row, "", "", "")
    step = max(seconds.values())
    share = report["needed_flops"] / report["executed_flops"] * seconds["compute"] / step
    return (*row, units.time(step), f"{report['batch_size'] / step:,.0f}", f"{share:.0%}")


def sampling_rows(run: str, report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """What each batch that fits takes on one device."""
    for each in report["runs"]:
        if each["fits"]:
            row = (run, report["device"], str(each["batch_size"]))
            row += (_memory(each["memory"], report["limit"]),)
            seconds = {name: part["seconds"] for name, part in each["parts"].items()}
            if None in seconds.values():
                yield (*row, "", "", "")
            else:
                whole = sum(seconds.values())
                rate = f"{each['batch_size'] / whole:.3g}"
                yield (*row, units.time(whole), rate, f"{seconds['structure'] / whole:.0%}")


def _memory(needed: int, limit: int | None) -> str:
    return units.memory(needed) + (f" of {units.memory(limit)}" if limit else "")


def tables(workdirs: list[str]) -> None:
    """Prints one table of training steps and one of sampling, for those that there are."""
    if not workdirs:
        raise UserError("name runs of --job=compile: --workdirs=runs/d16_v5e,runs/d24_v5e")
    training: list[tuple[str, ...]] = []
    sampling: list[tuple[str, ...]] = []
    for workdir in workdirs:
        path = epath.Path(workdir) / "compile.json"
        if not path.exists():
            raise UserError(f"{path} is not there: run --job=compile with this --workdir first")
        for report in json.loads(path.read_text()):
            if report["task"] == "sample":
                sampling += sampling_rows(path.parent.name, report)
            else:
                training.append(training_row(path.parent.name, report))
    if training:
        print(markdown.table(_TRAINING, training))
    if sampling:
        print(markdown.table(_SAMPLING, sampling))


if __name__ == "__main__":
    cli.run(lambda: tables(_WORKDIRS.value))
