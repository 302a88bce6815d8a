"""How a training step's time and memory grow with depth, batch and devices, as a plot.

    python -m benchmarks.scale_plot --depth=runs/d12,runs/d16,runs/d20,runs/d24 \
      --batch=runs/d16_256,runs/d16_512,runs/d16 --devices=runs/d16_4,runs/d16_64,runs/d16 \
      --output=docs/scale.png

takes workdirs with a `compile.json` of `--job=compile`, and needs neither device nor compiler. Each
list becomes a column of panels, over what its reports say of themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from absl import flags
from etils import epath

from nvg_jax import cli
from nvg_jax.errors import UserError

Report = Mapping[str, Any]


def _devices(report: Report) -> int:
    return int(report["device"].partition(" x ")[0])


def _depth(report: Report) -> int:
    return int(re.search(r"depth (\d+)", report["architecture"])[1])


def _images(report: Report) -> float:
    return report["batch_size"] / _devices(report)


# What a list of workdirs is laid out along: the axis' label, and a report's place on it.
AXES: dict[str, tuple[str, Callable[[Report], float]]] = {
    "depth": ("depth", _depth),
    "batch": ("images a device", _images),
    "devices": ("devices", _devices),
}
PARTS = {"compute": "arithmetic", "memory": "memory traffic", "collectives": "collectives"}


def read(workdirs: Sequence[str]) -> list[Report]:
    """The generator's reports of runs of `--job=compile`; UserError where there is none."""
    found = []
    for workdir in workdirs:
        path = epath.Path(workdir) / "compile.json"
        reports = json.loads(path.read_text()) if path.exists() else []
        reports = [each for each in reports if each["task"] == "generator" and each["seconds"]]
        if not reports:
            raise UserError(
                f"{path} says nothing of a generator's step on a known device: run --job=compile "
                "--config.compile.tasks=\"('generator',)\" with this --workdir first"
            )
        found += reports
    return found


def plot(columns: Mapping[str, Sequence[Report]], output: epath.PathLike) -> None:
    """A column of two panels, time and memory, for each axis of `AXES` that is given."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(columns), figsize=(4 * len(columns), 6), sharex="col", sharey="row", squeeze=False
    )
    for (above, below), (name, reports) in zip(axes.T, columns.items(), strict=True):
        label, place = AXES[name]
        reports = sorted(reports, key=place)
        xs = [place(report) for report in reports]
        for part, title in PARTS.items():
            times = [1e3 * report["seconds"][part] for report in reports]
            above.plot(xs, times, marker="o", label=title)
        below.plot(xs, [report["memory"] / 2**30 for report in reports], marker="o", label="all")
        below.plot(
            xs,
            [report["state"] / 2**30 for report in reports],
            marker="o",
            label="parameters, optimizer, average",
        )
        for limit in sorted({report["limit"] / 2**30 for report in reports}):
            below.axhline(limit, color="gray", linestyle="--", label="the chip's")
        if name == "devices":
            below.set_xscale("log", base=2)
        below.set_xticks(xs, [f"{x:g}" for x in xs])
        below.set_xlabel(label)
    axes[0, 0].set_ylabel("a step at least (ms)")
    axes[1, 0].set_ylabel("memory of a device (GiB)")
    for axis in axes[:, 0]:
        axis.set_ylim(0, 1.3 * axis.get_ylim()[1])
        axis.legend(fontsize=8, loc="upper left")
    figure.tight_layout()
    figure.savefig(output, dpi=80)
    pyplot.close(figure)


def main() -> None:
    columns = {name: read(flags.FLAGS[name].value) for name in AXES if flags.FLAGS[name].value}
    if not columns:
        raise UserError("name runs of --job=compile: --depth=runs/d16,runs/d20,runs/d24")
    plot(columns, flags.FLAGS.output)
    print(f"wrote {flags.FLAGS.output}")


if __name__ == "__main__":
    flags.DEFINE_list("depth", [], "Runs of --job=compile that differ in depth.")
    flags.DEFINE_list("batch", [], "Runs that differ in images a device.")
    flags.DEFINE_list("devices", [], "Runs that differ in devices.")
    flags.DEFINE_string("output", None, "The plot to write.")
    flags.mark_flag_as_required("output")
    cli.run(main)
