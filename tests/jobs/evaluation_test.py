"""Numbers and pictures of a tiny trained model."""

import json

from etils import epath
from PIL import Image

from nvg_jax import jobs


def test_evaluation_reports_and_stores_its_numbers(trained, capsys):
    config, workdir = trained
    results = jobs.evaluate(config, workdir)
    assert results == json.loads(epath.Path(workdir, "evaluation.json").read_text())
    assert 0 < results["psnr"] < 60 and 0 < results["codebook_usage"] <= 1
    assert 0 <= results["class_agreement"] <= 1 and results["diversity"] > 0
    assert len(results["codebook_usage_by_stage"]) == 5
    assert f"{results['psnr']:.3f}" in capsys.readouterr().out


def test_reconstruct_writes_strips(trained):
    config, workdir = trained
    jobs.reconstruct(config, workdir)
    assert Image.open(epath.Path(workdir, "reconstructions", "strips.png")).width > 300
