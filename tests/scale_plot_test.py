"""The plot of what compiled steps take."""

import json

import pytest

from benchmarks import scale_plot
from nvg_jax.errors import UserError


def _report(depth: int, devices: int, batch_size: int) -> dict:
    return {
        "task": "generator",
        "architecture": f"generator(depth {depth}, content 64 x 1 heads)",
        "device": f"{devices} x TPU v5 lite",
        "batch_size": batch_size,
        "memory": depth * 2**30,
        "state": 2**29,
        "limit": 16 * 2**30,
        "seconds": {"compute": 0.01 * depth, "memory": 0.02, "collectives": 0.001},
    }


def _written(directory, *reports):
    directory.mkdir()
    (directory / "compile.json").write_text(json.dumps(reports))
    return str(directory)


def test_reports_are_laid_out_by_what_they_say(tmp_path):
    small = _written(tmp_path / "a", _report(16, 4, 12))
    large = _written(tmp_path / "b", {"task": "sample"}, _report(24, 256, 768))
    reports = scale_plot.read([small, large])
    places = {
        name: [place(report) for report in reports] for name, (_, place) in scale_plot.AXES.items()
    }
    assert places == {"depth": [16, 24], "batch": [3, 3], "devices": [4, 256]}
    output = tmp_path / "scale.png"
    scale_plot.plot({"depth": reports, "devices": reports}, output)
    assert output.read_bytes().startswith(b"\x89PNG")


def test_a_run_without_such_a_report_is_named(tmp_path):
    unknown = _written(tmp_path / "here", _report(16, 4, 12) | {"seconds": None})
    for workdir in (unknown, str(tmp_path / "nothing")):
        with pytest.raises(UserError, match=r"compile\.json says nothing of a generator's step"):
            scale_plot.read([workdir])
