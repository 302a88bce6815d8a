"""The tables of what a training looks like, and whether one that begins now looks like that."""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import curves
from nvg_jax import pretrained
from nvg_jax.errors import UserError

CURVES = pathlib.Path(__file__).parents[1] / "docs" / "curves"


def test_rows_are_means_and_survive_a_file(tmp_path):
    steps = np.arange(10, 80, 10)
    full = curves.Curves(steps, {"loss": steps / 10.0, "content_by_stage/0": np.ones(7)})
    few = curves.thinned(full, rows=3)
    np.testing.assert_array_equal(few.steps, [30, 60, 70])
    np.testing.assert_allclose(few.values["loss"], [2.0, 5.0, 7.0])
    curves.save(few, tmp_path / "few.csv")
    again = curves.load(tmp_path / "few.csv")
    np.testing.assert_array_equal(again.steps, few.steps)
    np.testing.assert_allclose(again.values["loss"], few.values["loss"])
    curves.plot({"generator": again}, tmp_path / "few.png")
    assert (tmp_path / "few.png").stat().st_size > 1_000


def test_a_folder_without_summaries_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="no summaries of a training"):
            curves.from_summaries(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "last"), [("tokenizer", 40), ("generator", 60)])
def test_a_training_begins_like_the_reference(tmp_path, digits_dir, name, last):
    """The first steps; of the generator with the tokenizer that the reference was made with."""
    command = [
        *(sys.executable, "-m", "nvg_jax.main", "--config=configs/nvg_digits.py"),
        *(f"--workdir={tmp_path}", f"--config.data.data_dir={digits_dir}"),
        f"--config.{name}.training.log_every=20",
    ]
    if name == "generator":
        weights = pretrained.folder("digits") / "tokenizer.safetensors"
        command.append(f"--config.tokenizer.checkpoint={weights}")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    # So long a training is faster as users compile it.
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        for line in process.stdout:
            if f"{name} {last}/" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    found = curves.from_summaries(tmp_path / name)
    expected = curves.load(CURVES / f"digits_{name}.csv")
    rows = expected.steps <= last
    np.testing.assert_array_equal(found.steps[: rows.sum()], expected.steps[rows])
    for term in ("loss", *(key for key in expected.values if "_by_stage" in key)):
        value, reference = found.values[term][: rows.sum()], expected.values[term][rows]
        np.testing.assert_allclose(value, reference, rtol=0.05, atol=0.01, err_msg=term)
