"""The sweep over runs and steps of the structure generator."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import rows as csv_rows
from benchmarks import structure_steps
from nvg_jax.errors import UserError


@pytest.fixture
def sweep(trained, tmp_path):
    config, workdir = trained
    config.evaluation.structure_gap.metrics = ("fid", "class_agreement")

    def run(steps, stages, seeds, output=tmp_path / "steps.csv"):
        return structure_steps.sweep(config, workdir, output, steps, stages, seeds, 20)

    return run


def test_rows_that_are_there_are_not_measured_again(sweep, trained, tmp_path, monkeypatch):
    batch = trained[0].sampling.batch_size
    first = sweep(["1", "3"], ["all"], ["0"])
    asked, generate = [], structure_steps.generate

    def counted(model, settings, class_ids, size, seed):
        asked.append((settings.structure_stages, settings.flow_steps, len(class_ids), seed))
        return generate(model, settings, class_ids, size, seed)

    monkeypatch.setattr(structure_steps, "generate", counted)
    assert sweep(["1", "3"], ["all"], ["0"]) == first
    picture = [((), steps, batch, 0) for steps in (1, 3)]
    assert asked == picture
    asked.clear()
    rows = sweep(["1"], ["all", "0+1"], ["0", "7"])
    assert rows[0] == first[0]
    # A batch of each setting for the picture, which compiles, before what is measured.
    assert asked == [
        *((stages, 1, batch, 0) for stages in ((), (0, 1))),
        ((0, 1), 1, 20, 0),
        *((stages, 1, 20, 7) for stages in ((), (0, 1))),
    ]
    with Image.open(tmp_path / "steps.png") as shown:
        assert shown.width > 4 * shown.height and np.asarray(shown).std() > 10
    held = csv_rows.load(tmp_path / "steps.csv", structure_steps.KEYS).values()
    assert list(held) == [*first, *rows[1:]]
    # Other runs and other noise give other samples.
    assert len({row["fid"] for row in held}) == 5
    assert all(float(row["seconds_per_image"]) > 0 for row in held)
    assert all(0 <= float(row["class_agreement"]) <= 1 for row in held)


def test_the_summary_is_the_mean_over_seeds():
    fixed = {"generator": "step 6", "num_samples": "20", "structure_stages": "0", "flow_steps": "1"}
    rows = [fixed | {"seed": str(seed), "fid": str(fid)} for seed, fid in ((0, 2.0), (1, 5.0))]
    rows.append(fixed | {"flow_steps": "2", "seed": "0", "fid": "1.25"})
    shown = csv_rows.summary(rows, structure_steps.TITLES, structure_steps.KEYS).splitlines()
    assert shown[0] == "| structure at | steps | fid |"
    assert shown[2:] == [f"| 0 | 1 | 3.5 ± {np.sqrt(4.5):.2g} |", "| 0 | 2 | 1.25 |"]


def test_mistakes_are_one_line(sweep, tmp_path):
    with pytest.raises(UserError, match="--flow_steps=2,x: whole numbers only"):
        sweep(["2", "x"], ["all"], ["0"])
    with pytest.raises(UserError, match="--structure_stages=first: whole numbers only"):
        sweep(["2"], ["first"], ["0"])
    with pytest.raises(UserError, match="structure_stages=.0, 3.: .* less than 3"):
        sweep(["2"], ["0+3"], ["0"])
    with pytest.raises(UserError, match="flow_steps=0"):
        sweep(["0"], ["all"], ["0"])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="other.csv is not a file of this program"):
        sweep(["2"], ["all"], ["0"], tmp_path / "other.csv")
    head = ",".join(structure_steps.KEYS)
    (tmp_path / "columns.csv").write_text(f"{head},recall\nstep 6,20,all,1,0,0.5\n")
    with pytest.raises(UserError, match="columns.csv has other columns"):
        sweep(["2"], ["all"], ["0"], tmp_path / "columns.csv")
