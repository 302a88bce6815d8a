"""Numbers and pictures of a tiny trained model."""

import json
import os
import shutil
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from nvg_jax import jobs, pixels
from nvg_jax.data import pipeline
from nvg_jax.errors import UserError
from nvg_jax.evaluation import stability, streams
from nvg_jax.jobs import evaluation
from nvg_jax.jobs.model import load_model
from nvg_jax.tokenizer import inference

TOKENIZER = ("tokenizer", "tokenizer_variables")


def test_evaluation_reports_and_stores_its_numbers(trained, capsys, monkeypatch):
    config, workdir = trained
    read, of_split = [], streams.of_split
    monkeypatch.setattr(
        streams,
        "of_split",
        lambda data, split, *args: read.append(split) or of_split(data, split, *args),
    )
    written = epath.Path(workdir, "evaluation.json")
    written.unlink(missing_ok=True)
    results = jobs.evaluate(config, workdir)
    assert read.count("test") == 1
    assert results == json.loads(written.read_text())
    assert 0 < results["psnr"] < 60 and 0 < results["codebook_usage"] <= 1
    assert min(results[name] for name in ("rfid", "fid", "sfid", "diversity")) > 0
    assert 1 <= results["inception_score"] <= 10
    for name in ("class_agreement", "classifier_agreement", "precision", "recall"):
        assert 0 <= results[name] <= 1
    assert results["classifier_accuracy"] > 0.5 and results["class_accuracy"] > 0.9
    by_stage = ("codebook_usage_by_stage", "variation_structure", "variation_both")
    assert all(len(results[name]) == 5 for name in by_stage)
    assert results["variation_structure"][:2] == results["variation_both"][:1] * 2
    about = results["measured"]
    assert about.keys() == results.keys() - {"measured"}
    assert about["fid"].items() >= {"num_samples": 20, "generator": "step 6"}.items()
    assert about["psnr"].items() >= {"split": "test", "tokenizer": "step 6"}.items()
    assert "samples" not in about["psnr"] and about["fid"]["time"].endswith("Z")
    samples = about["fid"]["samples"]
    assert f"{results['psnr']:.3f}" in capsys.readouterr().out
    plot = np.asarray(Image.open(epath.Path(workdir, "evaluation", "variation.png")))
    assert plot.std() > 10 and (plot[:, :5] == 255).all()

    # With the classifier, the reference and the samples that are there now.
    config.evaluation.metrics = ("fid", "rfid")
    config.evaluation.samples = samples
    again = jobs.evaluate(config, workdir)
    assert {name: again[name] for name in ("fid", "rfid")} == {
        name: results[name] for name in ("fid", "rfid")
    }
    # What was not measured again is kept, with what was said of it.
    kept = json.loads(written.read_text())
    assert kept.keys() == results.keys() and kept["measured"].keys() == about.keys()
    assert kept["measured"]["diversity"] == about["diversity"]
    assert "generator" not in kept["measured"]["fid"]


def test_the_structure_gap_is_of_samples_with_the_real_structure(trained, tmp_path, monkeypatch):
    config, workdir = trained
    config.evaluation.metrics = ("structure_gap",)
    config.evaluation.structure_gap.stages = (0, 3, 5)  # All of 16 positions.
    config.data.eval_split = "test[:12]"  # Of which the 40 samples are in turn.
    made, generate = [], evaluation.generate

    def kept(model, settings, class_ids, *args):
        for sequence, images in generate(model, settings, class_ids, *args):
            made.append(sequence.structure)
            yield sequence, images

    monkeypatch.setattr(evaluation, "generate", kept)
    results = jobs.evaluate(config, workdir)
    names = ("fid", "precision", "recall", "classifier_agreement", "class_agreement", "diversity")
    assert results["structure_gap_stages"] == [0, 3, 5]
    assert all(len(results[f"structure_gap_{name}"]) == 3 for name in names)
    assert results["measured"]["structure_gap_fid"]["split"] == "test[:12]"
    assert epath.Path(workdir, "evaluation", "structure_gap.png").exists()

    tokenizer, variables = (getattr(load_model(config, workdir), x) for x in TOKENIZER)
    batch = next(iter(pipeline.evaluation_batches(config.data, "test[:12]", 12)))
    real = inference.sequences_of(
        tokenizer, variables, pixels.from_uint8(jnp.asarray(batch["image"]))
    ).structure
    real = np.resize(np.asarray(real), (40, 16))
    nothing, three, all_ = np.concatenate(made).reshape(3, 40, 16)
    np.testing.assert_array_equal(all_, real)
    np.testing.assert_array_equal(three >> 2, real >> 2)
    assert (three >> 1 != real >> 1).any() and (nothing >> 3 != real >> 3).any()


def test_structure_stability_is_of_images_as_they_are_disturbed(trained, exported, tmp_path):
    config, _ = trained
    config.tokenizer.checkpoint = str(exported / "tokenizer")
    config.evaluation.metrics = ("structure_stability",)
    settings = config.evaluation.structure_stability
    settings.num_images, settings.jpeg, settings.shifts = 40, (30,), (0, 1)
    settings.noise, settings.other_tokenizer = (0.0, 40.0), str(exported / "tokenizer.safetensors")
    settings.clusterings = ("principal", "spatial", "random")
    results = jobs.evaluate(config, str(tmp_path))
    found = {
        name.removeprefix("structure_stability_"): value
        for name, value in results.items()
        if name != "measured"
    }
    assert len(found) == 6 * 4
    about = results["measured"]["structure_stability_noise_40"]
    assert about["num_images"] == 40 and about["other_tokenizer"] == settings.other_tokenizer
    # Nothing is another structure: no noise, no shift, the same weights, or another image.
    for name in ("noise_0", "shift_0", "other"):
        for clustering in ("", "_principal", "_spatial", "_random"):
            assert found[f"{name}{clustering}"] == [1] * 5
    for name in ("noise_40", "jpeg_30"):
        assert found[f"{name}_spatial"] == found[f"{name}_random"] == [1] * 5
        for clustering in ("", "_principal"):
            assert 0 < min(found[f"{name}{clustering}"][1:4]) < 1

    model = load_model(config, str(tmp_path), with_generator=False)
    batch = next(iter(pipeline.evaluation_batches(config.data, "test[:40]", 40)))
    images = batch["image"]

    def structures(images):
        images = pixels.from_uint8(images)
        found = inference.sequences_of(model.tokenizer, model.tokenizer_variables, images)
        return np.asarray(found.structure)

    for name, disturbed, shift in (
        ("jpeg_30", stability.as_jpeg(images, 30), 0),
        ("shift_1", stability.shifted(images, 2), 1),
    ):
        expected = stability.agreement(structures(images), structures(disturbed), (4, 4), shift)
        np.testing.assert_allclose(found[name], expected.mean(axis=0), atol=0.02)


def test_numbers_of_before_are_kept_or_put_aside(trained, exported, tmp_path):
    config, _ = trained
    config.tokenizer.checkpoint = str(exported / "tokenizer")
    config.evaluation.metrics = ("codebook_usage",)
    written = tmp_path / "evaluation.json"
    # As it was written when one description was that of all.
    written.write_text('{"psnr": 12.5, "measured": {"dataset": "digits", "split": "train"}}')
    jobs.evaluate(config, str(tmp_path))
    found = json.loads(written.read_text())
    assert found["psnr"] == 12.5 and found["measured"]["psnr"]["split"] == "train"
    assert found["measured"]["codebook_usage"]["split"] == "test"
    for damaged in ('{"psnr": 12', "[]", '{"measured": 3}'):
        written.write_text(damaged)
        jobs.evaluate(config, str(tmp_path))
        assert "codebook_usage" in json.loads(written.read_text())
    aside = {path.read_text() for path in tmp_path.glob("evaluation*.damaged")}
    assert aside == {'{"psnr": 12', "[]", '{"measured": 3}'}


@pytest.fixture
def real_images(trained):
    """The training images as a file of samples."""
    config, workdir = trained
    batches = pipeline.evaluation_batches(config.data, "train[:200]", 200)
    batch = next(iter(batches))
    path = f"{workdir}/real.npz"
    images = batch["image"]
    np.savez(path, arr_0=images, arr_1=batch["label"])
    return config, workdir, path, images


def test_given_samples_that_are_the_reference_are_perfect(real_images):
    config, workdir, path, _ = real_images
    config.evaluation.samples = path
    config.evaluation.reference = path
    config.evaluation.metrics = ("fid", "sfid", "precision_recall")
    results = jobs.evaluate(config, workdir)
    assert results["fid"] < 1e-6 and results["sfid"] < 1e-6
    assert results["precision"] == results["recall"] == 1
    about = results["measured"]["fid"]
    assert (about["samples"], about["num_samples"], about["reference"]) == (path, 200, path)


def test_mistakes_are_one_clear_line(real_images, exported, tmp_path):
    config, workdir, path, images = real_images

    def refused(message, **changes):
        changed = config.copy_and_resolve_references()
        changed.evaluation.metrics = ("fid", "precision_recall")
        changed.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        with pytest.raises(UserError, match=message):
            jobs.evaluate(changed, workdir)

    refused("metrics=.'fit',.: it has to be 'psnr', 'ssim'", evaluation__metrics=("fit",))
    refused("SSIM looks at 11 x 11", evaluation__metrics=("ssim",))
    refused("LPIPS cannot compare images of 8 pixels", evaluation__metrics=("lpips",))
    refused("precision_recall needs at least 4 samples and there are 3", evaluation__num_samples=3)
    refused(r"classes=.12,.: it has to be less than 10", sampling__classes=(12,))
    refused("'vgg': it has to be 'inception' or 'classifier'", evaluation__features="vgg")
    refused("guided_iou tells objects by the colours", evaluation__metrics=("guided_iou",))
    refused("'segmentation_mask'", evaluation__metrics=("structure_miou",))
    refused(
        "distance='l2': it has to be 'lpips' or 'features'",
        evaluation__metrics=("variation",),
        evaluation__variation__distance="l2",
    )
    refused(
        "num_references=3, but split .* has 2 images",
        evaluation__metrics=("variation",),
        data__eval_split="test[:2]",
    )
    gap = {"evaluation__metrics": ("structure_gap",)}
    refused(r"stages=.0, 6.: .* less than or equal to 5", evaluation__structure_gap__stages=(0, 6))
    refused("metrics=.'psnr',.: it has to be 'fid'", evaluation__structure_gap__metrics=("psnr",))
    refused("precision_recall needs .* 4", evaluation__structure_gap__num_samples=3, **gap)
    of_stability = "evaluation__structure_stability__"
    for name, value, message in (
        ("jpeg", (90, 0), r"jpeg=.90, 0.: .* greater than or equal to 1"),
        ("jpeg", (101,), r"jpeg=.101,.: .* less than or equal to 100"),
        ("noise", (-2.0,), r"noise=.-2.0,.: .* greater than or equal to 0"),
        ("shifts", (1, 4), r"shifts=.1, 4.: it has to be less than 4"),
        ("clusterings", ("kmeans",), "kmeans.*: it has to be 'greedy', 'principal'"),
    ):
        refused(message, **{of_stability + name: value})
    stable = {"evaluation__metrics": ("structure_stability",)}
    refused(
        "is not a .* weights directory", **stable, **{of_stability + "other_tokenizer": workdir}
    )
    other = {of_stability + "other_tokenizer": str(exported / "generator.safetensors")}
    refused("was made with .*generator.* but this config is for tokenizer", **stable, **other)
    refused("split .* is empty", evaluation__metrics=("psnr",), data__eval_split="test[:0]")

    refused("there is no file", evaluation__samples=f"{tmp_path}/none.npz")
    refused("is no .npz file", evaluation__samples=__file__)
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((9, 16, 16, 3), np.uint8))
    refused("are 16 x 16 pixels and the model's 8 x 8", evaluation__samples=f"{tmp_path}/large.npz")
    refused(
        "are 16 x 16 pixels and the model's 8 x 8", evaluation__reference=f"{tmp_path}/large.npz"
    )
    np.savez(tmp_path / "no_classes.npz", arr_0=images)
    refused(
        "has no classes .arr_1., which diversity need",
        evaluation__metrics=("diversity",),
        evaluation__samples=f"{tmp_path}/no_classes.npz",
    )
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    reference = {"evaluation__samples": path, "evaluation__reference": f"{tmp_path}/statistics.npz"}
    refused("has no images .arr_0., which precision_recall needs", **reference)
    refused("64 features cannot be compared", evaluation__metrics=("fid",), **reference)
    refused("no statistics for sfid", evaluation__metrics=("sfid",), **reference)


def test_reconstruct_writes_strips(trained):
    config, workdir = trained
    jobs.reconstruct(config, workdir)
    assert Image.open(epath.Path(workdir, "reconstructions", "strips.png")).width > 300


_JOB = """
import json, sys
import jax
from ml_collections import ConfigDict
from nvg_jax import jobs

config, workdir, address, index = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(address, num_processes=2, process_id=int(index))
jobs.evaluate(ConfigDict(json.loads(config)), workdir)
"""


@pytest.mark.slow
def test_two_processes_of_two_devices_find_the_same(trained, tmp_path):
    config, workdir = trained
    config.evaluation.metrics += ("structure_stability",)
    together = tmp_path / "together"
    shutil.copytree(workdir, together, ignore=shutil.ignore_patterns("classifier", "reference*"))
    shutil.rmtree(f"{workdir}/classifier", ignore_errors=True)
    alone = jobs.evaluate(config, workdir)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    arguments = [config.to_json_best_effort(), str(together), address]
    flags = "--xla_force_host_platform_device_count=2"
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path), "XLA_FLAGS": flags}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _JOB, *arguments, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs[0][-2000:]
    found = json.loads((together / "evaluation.json").read_text())
    for name, value in alone.items():
        if name != "measured":
            # Other devices round otherwise, and with it a pixel of a sample by one level.
            tolerance = 1e-3 if name.startswith("variation") else 1e-4
            np.testing.assert_allclose(found[name], value, rtol=tolerance, err_msg=name)
