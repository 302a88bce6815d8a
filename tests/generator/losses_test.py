"""The losses that training minimises, against the release's."""

import jax
import jax.numpy as jnp
import numpy as np

from nvg_jax.generator import losses
from nvg_jax.granularity import GranularitySequence


def test_content_losses_reproduce_the_release(
    golden_generator, golden_generator_tokenizer, golden_sequences
):
    structure, quantized, class_id = golden_sequences
    scales = golden_generator_tokenizer.variables["stats"]["quantizer"]["canvas_scales"]
    by_stage = jax.jit(losses.content_losses, static_argnums=0)(
        golden_generator.module,
        golden_generator.variables,
        GranularitySequence(structure, quantized.tokens),
        quantized.canvases,
        class_id,
        scales,
    )
    arrays = golden_generator.arrays
    for name, values in by_stage.items():
        expected = [arrays[f"train.loss.{name}_{k}"] for k in range(9)]
        np.testing.assert_allclose(values, expected, rtol=1e-3)


def test_structure_losses_reproduce_the_release(golden_generator, golden_sequences):
    structure, quantized, class_id = golden_sequences
    arrays = golden_generator.arrays
    values = jax.jit(losses.structure_losses, static_argnums=0)(
        golden_generator.module,
        golden_generator.variables,
        GranularitySequence(structure, quantized.tokens),
        quantized.canvases,
        class_id,
        jnp.asarray(arrays["flow_noise"], jnp.float32),
        jax.nn.sigmoid(jnp.asarray(arrays["flow_u"])),
    )
    expected = [arrays[f"train.loss.structure_{k}"] for k in range(1, 8)]
    np.testing.assert_allclose(values, expected, rtol=1e-3)
