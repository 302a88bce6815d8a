"""The queue of trainings and measurements."""

import shutil

import pytest

from benchmarks import experiments, rows
from nvg_jax import jobs
from nvg_jax.errors import UserError
from nvg_jax.jobs.job import check


def test_what_is_done_is_neither_trained_nor_measured_again(trained, tmp_path, monkeypatch):
    config, workdir = trained
    config.evaluation.metrics, config.evaluation.num_samples = ("class_agreement", "psnr"), 20
    shutil.copytree(workdir, tmp_path / f"as_configured-{config.seed}")
    variants = {"as it is": {}, "one step": {"sampling.flow_steps": 1}}
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"steps": variants})
    evaluated, evaluate = [], jobs.evaluate

    def counted(config, workdir):
        evaluated.append((config.sampling.flow_steps, workdir))
        return evaluate(config, workdir)

    monkeypatch.setattr(jobs, "evaluate", counted)
    output = tmp_path / "steps.csv"
    given = (config, str(tmp_path), output, ["steps"], [str(config.seed)])
    found = experiments.run(*given)
    directory = f"{tmp_path}/as_configured-{config.seed}"
    assert evaluated == [(config.sampling.flow_steps, directory), (1, directory)]
    assert [row["variant"] for row in found] == list(variants)
    assert found[0]["psnr"] == found[1]["psnr"] and float(found[0]["class_agreement"]) <= 1
    assert experiments.run(*given) == found and len(evaluated) == 2
    assert list(rows.load(output, experiments.KEYS).values()) == found
    shown = rows.summary(found, experiments.TITLES, experiments.KEYS)
    assert shown.splitlines()[0].startswith("| experiment | variant | psnr | class_agreement |")


def test_every_variant_is_an_allowed_change(tiny_config):
    for name, variants in experiments.EXPERIMENTS.items():
        for variant in variants:
            changed = tiny_config.copy_and_resolve_references()
            changed.update_from_flattened_dict(experiments.changes_of(tiny_config, name, variant))
            check(changed)
    ladders = [
        experiments.changes_of(tiny_config, "ladders", x).get("stages", ()) for x in variants
    ]
    assert ladders == [(), (0, 2, 4), (0, 4), (2, 3, 4)]


def test_mistakes_are_one_line(tiny_config, tmp_path):
    given = (tiny_config, str(tmp_path), tmp_path / "steps.csv")
    with pytest.raises(UserError, match="--names=luck is no experiment: choose among clusterings"):
        experiments.run(*given, ["luck"], ["0"])
    with pytest.raises(UserError, match="--seeds=x: whole numbers only"):
        experiments.run(*given, ["switches"], ["0", "x"])
