"""Trained models taken from one place to another."""

import numpy as np
from etils import epath

from nvg_jax import jobs


def test_exported_weights_serve_every_job(trained, tmp_path):
    config, workdir = trained
    if not epath.Path(workdir, "export").exists():
        jobs.export(config, workdir)
    other = str(tmp_path / "other")
    config.tokenizer.checkpoint = f"{workdir}/export/tokenizer"
    config.generator.checkpoint = f"{workdir}/export/generator"
    jobs.sample(config, other)
    jobs.reconstruct(config, other)
    for name in ("arr_0", "arr_1"):
        ours, theirs = (np.load(f"{d}/samples/samples.npz")[name] for d in (workdir, other))
        np.testing.assert_array_equal(ours, theirs)
