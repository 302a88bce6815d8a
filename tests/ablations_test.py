"""Each switch of the paper's Table 3 turns off what it names, in the model, losses and samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import nvg_digits
from nvg_jax import granularity
from nvg_jax.generator import sampler
from nvg_jax.generator.model import build_generator
from nvg_jax.granularity import GranularitySequence
from nvg_jax.tokenizer.model import build_tokenizer

BATCH, STAGE = 3, 2
SCALES = jnp.linspace(1, 2, 6)
ABLATIONS = {
    "structure_rope": False,
    "predict_final_canvas": False,
    "noised_canvas": True,
    "known_structure": False,
}


def make_config(name=None):
    config = nvg_digits.get_config()
    config.data.image_size, config.data.num_classes = 8, 3
    model = config.tokenizer.model
    model.multipliers, model.latent_channels, model.vocab_size = (1, 1), 4, 16
    model = config.generator.model
    model.depth, model.content_width, model.structure_width, model.content_heads = 1, 32, 32, 1
    if name:
        model[name] = ABLATIONS[name]
    return config


@pytest.fixture(scope="module")
def params(random_variables):
    """Of the generator: the same with every switch."""
    return random_variables(build_generator(make_config()).init_variables)["params"]


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 8)
    structure = jnp.argsort(jax.random.uniform(keys[0], (BATCH, 16))).astype(jnp.int32)
    return {
        "sequence": GranularitySequence(
            structure, jax.random.randint(keys[1], (BATCH, 31), 0, 16, jnp.int32)
        ),
        "canvases": jax.random.normal(keys[2], (BATCH, 6, 16, 4)),
        "class_id": jnp.arange(BATCH),
        "structure_noise": jax.random.normal(keys[3], (BATCH, 16, 4)),
        "time": jax.random.uniform(keys[4], (BATCH, 3)),
        "canvas_noise": jax.random.normal(keys[5], (BATCH, 16, 4)),
    }


def predict(generator, params, inputs, structure, canvas, stage=STAGE, noise=None):
    stage = jnp.full(BATCH, stage)
    return jax.jit(generator.content.apply)(
        {"params": params["content"]}, canvas, structure, stage, inputs["class_id"], SCALES, noise
    )


def velocity(generator, params, inputs, structure, stage=STAGE, noisy=None, time=0):
    return jax.jit(generator.structure.apply)(
        {"params": params["structure"]},
        inputs["structure_noise"] if noisy is None else noisy,
        inputs["canvases"][:, stage + 1],
        structure,
        jnp.full(BATCH, stage),
        inputs["time"][:, time],
        inputs["class_id"],
    )


def content_losses(generator, params, inputs, noise=None):
    given = (inputs["sequence"], inputs["canvases"], inputs["class_id"], SCALES)
    return jax.jit(generator.content.loss)(params["content"], *given, noise)


@pytest.mark.parametrize("name", [None, "structure_rope"])
def test_rope_tells_the_structure_unless_switched_off(name, params, inputs):
    generator, canvas = build_generator(make_config(name)), inputs["canvases"][:, STAGE]
    structure = inputs["sequence"].structure
    others = jnp.roll(structure, 1, axis=1)
    content = [predict(generator, params, inputs, s, canvas) for s in (structure, others)]
    flow = [velocity(generator, params, inputs, s) for s in (structure, others)]
    for one, other in (content, flow):
        assert np.array_equal(one, other) == (name == "structure_rope")


def test_without_a_final_canvas_tokens_follow_from_the_output_itself(params, inputs):
    full, direct = (build_generator(make_config(name)) for name in (None, "predict_final_canvas"))
    structure, canvas = inputs["sequence"].structure, inputs["canvases"][:, STAGE]
    output = predict(direct, params, inputs, structure, canvas)

    def logits(generator, canvas):
        labels = granularity.labels_at(structure, STAGE)
        missing = generator.content.missing(output, canvas, labels, 2**STAGE)
        return generator.content.token_logits(params["content"], missing)

    ignoring = logits(direct, canvas)
    np.testing.assert_array_equal(ignoring, logits(direct, 0 * canvas))
    np.testing.assert_allclose(ignoring, logits(full, 0 * canvas), atol=1e-6)
    assert np.abs(ignoring - logits(full, canvas)).max() > 1e-3
    assert set(content_losses(direct, params, inputs)) == {"content"}
    assert set(content_losses(full, params, inputs)) == {"content", "final"}


def test_a_noised_canvas_goes_from_noise_to_itself(params, inputs):
    full, noised = (build_generator(make_config(name)) for name in (None, "noised_canvas"))
    structure, canvas = inputs["sequence"].structure, inputs["canvases"][:, STAGE]
    noise = inputs["canvas_noise"]

    def run(stage, canvas, noise):
        return predict(noised, params, inputs, structure, canvas, stage, noise)

    np.testing.assert_array_equal(run(0, canvas, noise), run(0, 2 * canvas, noise))
    assert np.abs(run(0, canvas, noise) - run(0, canvas, 2 * noise)).max() > 1e-4
    # Two of five stages are done: 3/5 noise and 2/5 of the canvas, at its scale.
    mixed = 0.6 * noise / SCALES[STAGE] + 0.4 * canvas
    expected = predict(full, params, inputs, structure, mixed)
    np.testing.assert_allclose(run(STAGE, canvas, noise), expected, atol=1e-5)
    one, other = (content_losses(noised, params, inputs, x)["content"] for x in (noise, -noise))
    assert np.any(one != other)


def test_pure_noise_hides_and_trains_all_channels(params, inputs):
    generator = build_generator(make_config("known_structure"))
    structure = inputs["sequence"].structure
    actual = jax.jit(generator.structure.loss)(
        params["structure"],
        *(inputs[name] for name in ("sequence", "canvases", "class_id")),
        image_keys=None,
        noise=inputs["structure_noise"],
        time=inputs["time"],
    )
    x = np.asarray(granularity.structure_embedding(structure, 4)) - 1
    noise, expected = np.asarray(inputs["structure_noise"]), []
    for stage in range(3):
        t = np.asarray(inputs["time"])[:, stage, None, None]
        noisy = jnp.asarray(t * noise + (1 - t) * x)
        predicted = noise - velocity(generator, params, inputs, structure, stage, noisy, stage)
        expected.append(np.mean((predicted - x) ** 2))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.slow
def test_samples_show_every_switch(params, random_variables):
    tokenizer = build_tokenizer(make_config())
    tokenizer_variables = random_variables(tokenizer.init_variables)
    tokenizer_variables["stats"]["quantizer"]["canvas_scales"] = SCALES
    # Large enough for choices to differ, and for the flow's scores not all to be clipped.
    factors = {"content": 4, "structure": 2}
    strong = {
        name: jax.tree.map(lambda x, f=factor: f * x, params[name])
        for name, factor in factors.items()
    }
    found = []
    for name in (None, *ABLATIONS):
        sequence = sampler.sample(
            tokenizer,
            build_generator(make_config(name)),
            sampler.Settings(flow_steps=3),
            tokenizer_variables,
            {"params": strong},
            jnp.arange(32) % 3,
            jax.random.split(jax.random.key(1), 32),
        )
        np.testing.assert_array_equal(np.sort(sequence.structure), np.tile(np.arange(16), (32, 1)))
        found.append(np.concatenate(sequence, axis=1).tobytes())
    assert len(set(found)) == len(found)


def test_architecture_names_the_switches():
    names = {build_generator(make_config(name)).architecture for name in (None, *ABLATIONS)}
    assert len(names) == 5
