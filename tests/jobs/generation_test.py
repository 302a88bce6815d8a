"""Samples of a tiny trained model."""

import json
import shutil

import numpy as np
import pytest

from nvg_jax import jobs
from nvg_jax.errors import UserError


def test_a_sample_does_not_depend_on_the_batch_size(trained):
    config, workdir = trained
    model, settings = jobs.load_model(config, workdir), jobs.sampling_settings(config)
    class_ids = jobs.requested_classes(config, 7)

    def images(batch_size):
        batches = jobs.generate(model, settings, class_ids, batch_size, seed=3)
        return np.concatenate([batch for _, batch in batches])

    assert len(images(4)) == 7
    np.testing.assert_array_equal(images(4), images(7))


def test_bad_requests_are_one_clear_line(trained):
    config, workdir = trained
    config.sampling.classes = (3, 10)
    with pytest.raises(UserError, match=r"classes=.3, 10.: it has to be less than 10"):
        jobs.sample(config, workdir)
    model, settings = jobs.load_model(config, workdir), jobs.sampling_settings(config)
    for class_id in (-1, 10):
        with pytest.raises(ValueError, match="classes"):
            next(jobs.generate(model, settings, [class_id]))
    config.generator.model.structure = "mean_flow"
    for guidance in ((0.5, 2.0), (1.0, 4.5)):
        config.sampling.structure_guidance = guidance
        with pytest.raises(UserError, match="structure_guidance=.*trained with guidance from 1 to"):
            jobs.sampling_settings(config)
    config.generator.model.structure, config.sampling.structure_stages = "masked", (0,)
    with pytest.raises(UserError, match=r"structure_stages=\(0,\): masked bits tell nothing"):
        jobs.sampling_settings(config)


def test_samples_take_nobodys_place(trained, tmp_path):
    config, workdir = trained
    shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("samples*"))
    config.control.structure = "left"
    first = jobs.sample(config, str(tmp_path / "run"))
    config.control.structure, config.seed = "", 1
    second = jobs.sample(config, str(tmp_path / "run"))
    assert (first.name, second.name) == ("samples", "samples-2")
    assert (first / "given.png").exists() and not (second / "given.png").exists()
    request = json.loads((second / "request.json").read_text())
    assert request["generator"] == "step 6" and request["seed"] == 1


def test_sampling_without_a_checkpoint(tiny_config, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        jobs.sample(tiny_config, str(tmp_path))
