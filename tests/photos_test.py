"""The photographs' config as it stands, for fewer steps: every loss, real-size frozen networks."""

import json
import pathlib
import re
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_loss_falls_and_no_stage_collapses(tmp_path):
    data = ["--config.data.data_dir=" + str(tmp_path / "datasets")]
    prepare = [sys.executable, "-m", "nvg_jax.data.prepare", "photos"]
    subprocess.run([*prepare, f"--data_dir={tmp_path / 'datasets'}"], check=True)
    command = [
        *(sys.executable, "-m", "nvg_jax.main", "--config=configs/nvg_photos.py"),
        *(f"--workdir={tmp_path}", "--config.tokenizer.training.epochs=0.03", *data),
        *("--config.tokenizer.training.batch_size=4", "--config.tokenizer.training.log_every=5"),
        *("--config.generator.training.batch_size=4", "--config.generator.training.epochs=0.006"),
        *(
            "--config.generator.training.repa.weight=0.5",
            "--config.generator.training.repa.depth=2",
        ),
        *("--config.tokenizer.scale_batches=2", "--config.sampling.num_samples=4"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"tokenizer \d+/15 .*", done.stdout)
    falling = ("loss", "l1", "lpips", "quantization")
    values = [
        {x: float(re.search(rf" {x} ([\d.]+)", line)[1]) for x in (*falling, "discriminator")}
        for line in lines
    ]
    assert len(values) == 3 and all(values[-1][x] < values[0][x] for x in falling), values
    # In so few steps the discriminator's loss stays at its first value, 1.
    assert all(0.9 < found["discriminator"] < 1.1 for found in values), values
    assert re.search(r"generator 3/3 .* repa [01]\.\d+", done.stdout)
    evaluate = [*command, "--job=evaluate"]
    done = subprocess.run(evaluate, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(pathlib.Path(tmp_path, "evaluation.json").read_text())
    # Stages 5 and 6 have more than 16 clusters.
    assert min(results["codebook_usage_by_stage"][5:]) > 0.3
    assert (tmp_path / "samples" / "grid.png").exists()
