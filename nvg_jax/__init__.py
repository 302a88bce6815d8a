"""Next Visual Granularity image generation in JAX."""

import os

# TensorFlow prepares data and writes summaries; without this it opens with notes on its arithmetic.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
