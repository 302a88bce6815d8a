"""Reads the dataset tiny_photos, none of whose code it knows, and waits: DATA_DIR NUM_WORKERS."""

import sys

from ml_collections import ConfigDict

from nvg_jax.data import pipeline
from nvg_jax.data.stream import Order


def main():
    fields = {"dataset": "tiny_photos", "train_split": "train", "num_classes": 8}
    fields |= {"image_size": 16, "resize_ratio": 1.125}
    config = ConfigDict(fields | {"data_dir": sys.argv[1], "num_workers": int(sys.argv[2])})
    iterator = pipeline.train_iterator(config, Order(batch_size=4, seed=0))
    next(iterator)
    for _ in pipeline.evaluation_batches(config, "validation", 4):
        pass
    print("tensorflow" in sys.modules, flush=True)
    sys.stdin.readline()


if __name__ == "__main__":  # The workers import it too.
    main()
