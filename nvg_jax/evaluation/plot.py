"""Plots of what was measured, as pictures."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nvg_jax import visualize

_COLUMNS = 3


def panels(
    xlabel: str, x: Sequence[int], values: Mapping[str, Mapping[str, Sequence[float]]]
) -> visualize.Picture:
    """A panel for each quantity, which begins at 0, with a line for each series."""
    columns = min(len(values), _COLUMNS)
    rows, width = math.ceil(len(values) / columns), 5 if columns == 1 else 3.2
    size = (columns * width, rows * (3.2 if columns == 1 else 2.4))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes in grid[len(values) :]:
        axes.set_axis_off()
    for axes, (ylabel, lines) in zip(grid, values.items(), strict=False):
        for label, line in lines.items():
            axes.plot(x, line, marker="o", label=label)
        top = 1.1 * max(map(max, lines.values())) or 1.0
        axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, top), xticks=x)
        if len(lines) > 1:
            axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
