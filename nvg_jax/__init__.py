"""Next Visual Granularity image generation in JAX."""
