"""What a training looks like: its logged losses, by stage, as small tables and a plot.

    python -m benchmarks.curves --workdir=runs/digits --output=docs/curves/digits

It reads the summaries that the job `train` leaves in the workdir and writes
`<output>_tokenizer.csv`, `<output>_generator.csv` and `<output>.png`. Each row of a table is the
mean over the steps since the row before.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import NamedTuple

import matplotlib
import numpy as np
from absl import flags
from etils import epath
from jaxtyping import Float, Int
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from nvg_jax import cli, files
from nvg_jax.errors import UserError

NAMES = ("tokenizer", "generator")
# Of these summaries, the metrics of a step; the others are about speed and the schedule.
_LOSSES = ("loss", "canvas_error_by_stage/", "final_by_stage/", "content_by_stage/", "structure_by")


class Curves(NamedTuple):
    """Losses of a training: `values[name][i]` is the mean up to step `steps[i]`."""

    steps: Int[np.ndarray, "rows"]
    values: Mapping[str, Float[np.ndarray, "rows"]]


def from_summaries(directory: epath.PathLike) -> Curves:
    """The curves of a training's folder; UserError if it has no summaries.

    Of a step that was summarised twice, since training was resumed before it, the later counts.
    """
    names = []
    if epath.Path(directory).is_dir():
        events = event_accumulator.EventAccumulator(str(directory), size_guidance={"tensors": 0})
        events.Reload()
        names = sorted(name for name in events.Tags()["tensors"] if name.startswith(_LOSSES))
    if not names:
        raise UserError(f"no summaries of a training are in {directory}: run --job=train first")
    found = {
        name: {
            event.step: float(tensor_util.make_ndarray(event.tensor_proto))
            for event in events.Tensors(name)
        }
        for name in names
    }
    steps = sorted(found["loss"])
    return Curves(
        np.array(steps),
        {name: np.array([by_step[step] for step in steps]) for name, by_step in found.items()},
    )


def thinned(curves: Curves, rows: int) -> Curves:
    """At most so many rows, each the mean over those that it stands for."""
    each = -(-len(curves.steps) // rows)
    starts = np.arange(0, len(curves.steps), each)
    ends = np.minimum(starts + each, len(curves.steps))

    def mean(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, starts) / (ends - starts)

    values = {name: mean(column) for name, column in curves.values.items()}
    return Curves(curves.steps[ends - 1], values)


def save(curves: Curves, path: epath.PathLike) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *curves.values])
    for step, *row in zip(curves.steps, *curves.values.values(), strict=True):
        writer.writerow([step, *(f"{value:.4g}" for value in row)])
    files.write_text(path, text.getvalue())


def load(path: epath.PathLike) -> Curves:
    with epath.Path(path).open() as file:
        header, *rows = csv.reader(file)
    columns = np.array(rows, np.float64).T
    return Curves(columns[0].astype(int), dict(zip(header[1:], columns[1:], strict=True)))


def plot(curves: Mapping[str, Curves], path: epath.PathLike) -> None:
    """A panel for each training's terms, and one for each term that is known by stage."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = []
    for name, (steps, values) in curves.items():
        terms = {key.removeprefix("loss/"): values[key] for key in values if "loss" in key}
        panels.append((f"{name}: losses", steps, terms))
        for title in sorted({key.partition("/")[0] for key in values if "_by_stage" in key}):
            stages = {key.partition("/")[2]: values[key] for key in values if f"{title}/" in key}
            panels.append((f"{name}: {title.replace('_', ' ')}", steps, stages))
    columns = -(-len(panels) // 2)
    figure, axes = pyplot.subplots(2, columns, figsize=(4 * columns, 6), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, steps, lines) in zip(axes.flat, panels, strict=False):
        for label, line in lines.items():
            axis.plot(steps, line, label=label, linewidth=1.2)
        axis.set_title(title, fontsize=9)
        axis.set_yscale("log")
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7, which="both")
        axis.legend(fontsize=6, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def main() -> None:
    workdir, output, rows = flags.FLAGS.workdir, flags.FLAGS.output, flags.FLAGS.rows
    found = {name: thinned(from_summaries(f"{workdir}/{name}"), rows) for name in NAMES}
    for name, curves in found.items():
        save(curves, f"{output}_{name}.csv")
    plot(found, f"{output}.png")
    print(f"wrote {output}.png and its tables")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Where the job `train` has run.")
    flags.DEFINE_string("output", None, "Beginning of the names of what is written.")
    flags.DEFINE_integer("rows", 40, "Of each table, at most.", lower_bound=1)
    flags.mark_flags_as_required(["workdir", "output"])
    cli.run(main)
