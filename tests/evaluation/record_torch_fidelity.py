"""Records what torch-fidelity measures on made-up features, for `distribution_test.py`.

Run by hand, where torch-fidelity is installed (`pip install torch-fidelity`); writes
`torch_fidelity.json` beside this file:

    python tests/evaluation/record_torch_fidelity.py
"""

import importlib.metadata
import json
import pathlib

import numpy as np

RECORD = pathlib.Path(__file__).with_name("torch_fidelity.json")

PARAMETERS = {
    "seed": 0,
    "num_real": 500,
    "num_samples": 400,
    "num_features": 64,
    "rank": 6,
    "num_classes": 20,
}
NUM_SPLITS = (1, 4)
NEIGHBOURS = (3, 5)


def make_features(
    seed: int, num_real: int, num_samples: int, num_features: int, rank: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of real images [num_real num_features] and of samples [num_samples num_features],
    and logits of the samples [num_samples num_classes], float32.

    Nearly all variation of the features is in `rank` directions. The samples are shifted against
    the real images and less spread, so that each covers a part of the other.
    """
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(rank, num_features))
    real = rng.normal(size=(num_real, rank)) @ directions
    samples = (0.8 * rng.normal(size=(num_samples, rank)) + 0.5) @ directions
    real += 0.1 * rng.normal(size=real.shape)
    samples += 0.1 * rng.normal(size=samples.shape)
    logits = 3 * rng.normal(size=(num_samples, num_classes))
    return real.astype(np.float32), samples.astype(np.float32), logits.astype(np.float32)


def main() -> None:
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, samples, logits = (torch.from_numpy(array) for array in make_features(**PARAMETERS))
    real_statistics, sample_statistics = map(fid_features_to_statistics, (real, samples))
    record = {
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch-fidelity", "torch", "numpy")
        },
        "parameters": PARAMETERS,
        "frechet_distance": fid_statistics_to_metric(
            sample_statistics, real_statistics, verbose=False
        ),
        "inception_score": [
            {"splits": splits} | isc_features_to_metric(logits, splits, shuffle=False)
            for splits in NUM_SPLITS
        ],
        "precision_recall": [
            {"neighbours": k}
            | prc_features_to_metric(samples, real, prc_neighborhood=k, verbose=False)
            for k in NEIGHBOURS
        ],
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
