"""What the report says against what happened."""

import io
import logging
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from nvg_jax import hardware
from nvg_jax.training.report import Report
from tests.small_disk import small_disk


@pytest.fixture
def report(tmp_path):
    made = Report("generator", str(tmp_path), num_steps=100, batch_size=32, start=10)
    yield made
    made.close()


def metrics(loss: float) -> dict:
    counts = np.zeros((3, 8), np.int32)
    counts[0, 0] = counts[1, :2] = counts[2, :4] = 5
    return {
        "loss": jnp.float32(loss),
        "content_by_stage": jnp.array([loss, 2 * loss, 3 * loss]),
        "token_counts": jnp.asarray(counts),
    }


def test_summary_is_the_mean_over_the_steps(report, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="nvg_jax")
    for loss in (1.0, 3.0):
        report.add(metrics(loss), skipped=2)
    report.write(12, learning_rate=1e-3)
    report.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    scalars = {
        tag: float(make_ndarray(events.Tensors(tag)[0].tensor_proto))
        for tag in events.Tags()["tensors"]
    }
    assert scalars["loss"] == 2.0
    assert scalars["content_by_stage/2"] == 6.0
    assert scalars["codebook_usage"] == 0.5
    assert scalars["codebook_usage_by_stage/1"] == 0.25
    assert scalars["skipped_images"] == 4.0
    assert scalars["images_per_second"] > 0
    text = caplog.text
    assert "generator 12/100  loss 2.0000" in text and "skipped 4" in text and "left" in text
    assert "codebook usage by stage" in text and "content by stage" in text


def test_utilisation_is_what_a_step_takes_of_the_peak(report, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="nvg_jax")
    kind = jax.devices()[0].device_kind
    chip = hardware.Chip(1e12 / jax.device_count(), 1, 1.0, 1.0)
    monkeypatch.setitem(hardware.CHIPS, kind, chip)
    report.step_flops = 3e9
    report.add(metrics(1.0), skipped=0)
    time.sleep(0.05)
    report.write(11, learning_rate=1e-3)
    report.close()
    scalars = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    speed, utilisation, images = (
        float(make_ndarray(scalars.Tensors(tag)[0].tensor_proto))
        for tag in ("teraflops_per_second", "utilisation", "images_per_second")
    )
    np.testing.assert_allclose(speed, 3e-3 * images / 32, rtol=1e-5)
    np.testing.assert_allclose(utilisation, speed, rtol=1e-5)
    assert "of peak)" in caplog.text


def test_pictures_are_written_as_files(report, tmp_path):
    picture = np.full((8, 8, 3), 7, np.uint8)
    report.write_pictures(12, {"samples": picture})
    report.close()
    assert (tmp_path / "pictures" / "samples_00000012.png").exists()
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    (event,) = events.Tensors("samples")
    width, height, png = make_ndarray(event.tensor_proto)
    assert event.step == 12 and (width, height) == (b"8", b"8")
    np.testing.assert_array_equal(Image.open(io.BytesIO(png)), picture)


def test_writing_imports_no_tensorflow(tmp_path):
    """It would take every training eight seconds of a core."""
    code = (
        "import sys; from nvg_jax.training.report import Report; "
        f"Report('a', {str(tmp_path)!r}, 1, 1, 0).close(); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_full_disk_ends_no_training(tmp_path, caplog):
    """What comes before and after can be read, although a record in between is half written."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with small_disk(tmp_path, "1m") as disk:
        directory = disk.path / "generator"
        report = Report("generator", str(directory), num_steps=100, batch_size=32, start=10)
        for step in range(11, 16):
            if step == 12:
                disk.fill(leave=4096)
            elif step == 15:
                disk.free()
            report.add(metrics(float(step)), skipped=0)
            report.write(step, learning_rate=1e-3)
            report.write_pictures(step, {"noise": noise})
        report.close()
        lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        for line, what in zip(lines, ("pictures", "summaries"), strict=True):
            assert f"no {what} can be written to" in line and "No space left on device" in line
            assert "training goes on" in line
        losses = {}
        for file in directory.glob("events*"):
            events = EventAccumulator(str(file), size_guidance={"tensors": 0}).Reload()
            if "loss" in events.Tags()["tensors"]:
                losses |= {e.step: make_ndarray(e.tensor_proto) for e in events.Tensors("loss")}
        assert {11, 15} <= losses.keys() and all(step == loss for step, loss in losses.items())
        assert (directory / "pictures" / "noise_00000015.png").stat().st_size > 10_000
