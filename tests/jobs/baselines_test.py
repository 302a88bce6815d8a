"""Baselines go through the jobs of the method, and what only the method has is refused."""

import json

import numpy as np
import pytest
from etils import epath

from benchmarks import sampling, train_step
from configs import small
from nvg_jax import jobs
from nvg_jax.errors import UserError
from nvg_jax.jobs.job import check


@pytest.fixture
def baseline(tiny_config):
    """The tiny config with another method."""

    def make(method):
        small.as_baseline(tiny_config, method)
        tiny_config.sampling.flow_steps = 2
        of_tokens = ("codebook_usage",) * (method == "var")
        tiny_config.evaluation.metrics = ("psnr", "class_agreement", *of_tokens)
        return tiny_config

    return make


@pytest.mark.slow
@pytest.mark.parametrize("method", ["var", "flow"])
def test_from_nothing_to_numbers_and_weights(baseline, method, tmp_path):
    config, root = baseline(method), epath.Path(tmp_path)
    jobs.train(config, str(root))
    for name in ("tokenizer", "generator"):
        assert (root / name / "checkpoints" / "6").exists()
        assert list((root / name / "pictures").glob("*_00000006.png"))
    assert (jobs.reconstruct(config, str(root)) / "strips.png").exists()
    results = jobs.evaluate(config, str(root))
    assert results["psnr"] > 0 and 0 <= results["class_agreement"] <= 1
    jobs.export(config, str(root))
    config.tokenizer.checkpoint = str(root / "export" / "tokenizer")
    config.generator.checkpoint = str(root / "export" / "generator")
    folder = jobs.sample(config, str(root / "again"))
    images = [np.load(path / "samples.npz")["arr_0"] for path in (root / "samples", folder)]
    np.testing.assert_allclose(*map(np.int32, images), atol=1)
    assert json.loads((folder / "request.json").read_text())["tokenizer"].endswith("tokenizer")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["var", "flow"])
def test_benchmarks_time_them_as_the_method(baseline, method, capsys):
    config = baseline(method)
    runs = sampling.parts(config, 2)
    assert set(runs) == {"whole", "decoder"}
    side = config.data.image_size
    assert runs["whole"]().shape == runs["decoder"]().shape == (2, side, side, 3)
    versions = train_step.generator_versions(config)
    train_step.measure(config, versions, 2, repeats=1, rate=1e12)
    (line,) = capsys.readouterr().out.splitlines()
    assert line[8:16].strip() == "images" and float(line.split()[-1]) > 0


def test_jobs_of_structure_are_refused(baseline, tmp_path):
    config = baseline("var")
    for run in (jobs.tokenize, jobs.control, jobs.edit, jobs.compile):
        with pytest.raises(UserError, match=f"the job {run.__name__} is of the method nvg: "):
            run(config, str(tmp_path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("generator.training.stage_stride", 4),
        ("generator.model.structure", "mean_flow"),
        ("tokenizer.model.clustering", "random"),
        ("control.structure", "left"),
        ("token_cache.directory", "somewhere"),
    ],
)
def test_values_of_structure_are_refused(baseline, name, value):
    config = baseline("var")
    check(config)
    config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=f"config.{name}={value!r} is for the method nvg: leave"):
        check(config)


def test_metrics_of_structure_are_refused(baseline):
    config = baseline("var")
    config.evaluation.metrics = ("psnr", "codebook_usage", "variation", "structure_gap")
    with pytest.raises(UserError, match="^variation, structure_gap of config.evaluation.metrics"):
        check(config)
    config.method = "flow"
    with pytest.raises(UserError, match="^codebook_usage, variation, structure_gap of config"):
        check(config)


def test_methods_are_named(baseline):
    with pytest.raises(UserError, match="config.method='vae'"):
        check(baseline("vae"))
