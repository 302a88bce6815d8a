"""What is said of metrics before and after they are measured."""

import numpy as np
import pytest

from nvg_jax.errors import UserError
from nvg_jax.evaluation import metric
from nvg_jax.evaluation.archive import Samples
from nvg_jax.evaluation.metrics.frechet import FID, RFID, SFID
from nvg_jax.evaluation.metrics.precision_recall import PrecisionRecall
from nvg_jax.evaluation.metrics.psnr import PSNR

NAMES = {PSNR: ["psnr"], RFID: ["rfid"], FID: ["fid"], SFID: ["sfid"]}
NAMES[PrecisionRecall] = ["precision", "recall"]


@pytest.mark.parametrize(
    ("num_samples", "num_images", "few"),
    [
        (20, 360, "rfid of 360 images; fid, sfid, precision, recall of 20 images: "),
        (1999, 1999, "rfid, fid, sfid, precision, recall of 1,999 images: "),
        (2000, 12, "rfid of 12 images: "),
        (2000, 2000, ""),
    ],
)
def test_metrics_of_few_images_say_so_in_one_line(tiny_config, num_samples, num_images, few):
    metrics = [kind(tiny_config, num_samples) for kind in NAMES]
    metrics[1].update((np.zeros((num_images, 3), np.float32),) * 2)
    found = [dict.fromkeys(names, 0.5) for names in NAMES.values()]
    expected = few and f"{few}below 2,000 images these mean little, and can only be compared with"
    assert metric.of_few_images(metrics, found).startswith(expected)
    assert bool(metric.of_few_images(metrics, found)) == bool(few)


def test_classes_that_the_model_does_not_have(tiny_config):
    tiny_config.evaluation.samples = "samples.npz"
    samples = Samples(np.zeros((9, 8, 8, 3), np.uint8), np.arange(2, 11))
    tiny_config.evaluation.metrics = ("fid", "class_agreement")
    message = "arr_1 of samples.npz has class 10, which class_agreement does not know: .* is 10$"
    with pytest.raises(UserError, match=message):
        metric.choose(tiny_config, samples)
    tiny_config.evaluation.metrics = ("fid",)
    assert len(metric.choose(tiny_config, samples)) == 1
