"""Next Visual Granularity image generation in JAX."""

import os
import time

START_TIME = time.monotonic()  # Of the process, but for what Python itself needs.

# TensorFlow prepares data and writes summaries; without this it opens with notes on its arithmetic.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
