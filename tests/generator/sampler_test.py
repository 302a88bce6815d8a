"""Sampling against the release, and schedules against their formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax import granularity, sharding
from nvg_jax.generator import sampler
from nvg_jax.generator.model import STRUCTURE_GENERATORS, Generator
from nvg_jax.generator.settings import ramp, top_p_at
from nvg_jax.generator.sizes import Sizes, StackSizes
from nvg_jax.granularity import GranularitySequence
from nvg_jax.tokenizer import inference
from nvg_jax.tokenizer.model import Tokenizer
from tests.torch_topk import torch_topk


def _split_as_torch(scores, labels, num_clusters, gumbel=None):
    """`granularity.balanced_split` with the release's choice among positions of equal value."""
    value = jnp.clip(scores, -1.0, 1.0)

    def split(value, labels, num_clusters):
        value, labels = np.asarray(value), np.asarray(labels)
        children = 2 * labels
        for b, row in enumerate(labels):
            for cluster in range(int(num_clusters)):
                members = np.flatnonzero(row == cluster)
                upper = torch_topk(value[b, members], len(members) // 2)
                children[b, members[upper]] += 1
        return children

    shape = jax.ShapeDtypeStruct(labels.shape, labels.dtype)
    return jax.pure_callback(split, shape, value, labels, num_clusters)


@functools.partial(jax.jit, static_argnums=0)
def _canvases(tokenizer, variables, sequence):
    return tokenizer.apply(variables, sequence, method="canvases")


def test_reproduces_the_release(golden_generator, golden_generator_tokenizer, monkeypatch):
    monkeypatch.setattr(granularity, "balanced_split", _split_as_torch)
    tokenizer, tokenizer_variables, _, arrays = golden_generator_tokenizer
    ends = [0, -1]
    settings = sampler.Settings(
        content_guidance=tuple(map(float, arrays["sample.content_guidance"][ends])),
        structure_guidance=tuple(map(float, arrays["sample.structure_guidance"][ends])),
        temperature=0.0,
        top_p=(1.0, 1.0),
        flow_steps=int(arrays["sample.flow_steps"]),
    )
    class_id = jnp.asarray(arrays["class_label"], jnp.int32)
    sequence = sampler.sample(
        tokenizer,
        golden_generator.module,
        settings,
        tokenizer_variables,
        golden_generator.variables,
        class_id,
        jax.random.split(jax.random.key(0), len(class_id)),
        jnp.asarray(arrays["sample.noise"], jnp.float32),
    )
    for stage in range(tokenizer.last_stage + 1):
        labels = np.asarray(granularity.labels_at(sequence.structure, stage))
        tokens = np.asarray(granularity.stage_tokens(sequence.tokens, stage))
        painted = np.take_along_axis(tokens, labels, axis=1)
        np.testing.assert_array_equal(painted, arrays["sample.tokens"][:, stage])
        if stage:
            np.testing.assert_array_equal(labels, arrays["sample.labels"][:, stage - 1])
    canvases = _canvases(tokenizer, tokenizer_variables, sequence)
    np.testing.assert_allclose(canvases[:, -1], arrays["sample.final_canvas"], rtol=1e-3, atol=1e-3)


def test_guidance_is_linear_over_the_stages(golden_generator):
    arrays, settings = golden_generator.arrays, sampler.Settings()
    last_stage = golden_generator.module.sizes.last_stage
    for stage in range(last_stage + 1):
        content = ramp(settings.content_guidance, stage, last_stage)
        structure = ramp(settings.structure_guidance, stage, last_stage)
        assert content == pytest.approx(arrays["sample.content_guidance"][stage])
        assert structure == pytest.approx(arrays["sample.structure_guidance"][stage])


@pytest.fixture(scope="module")
def small():
    """A random generator and its tokenizer on 4 x 4 positions."""
    tokenizer = Tokenizer(
        image_size=8,
        width=32,
        multipliers=(1, 1),
        num_blocks=1,
        latent_channels=4,
        vocab_size=16,
    )
    generator = Generator(
        Sizes(
            content=StackSizes(depth=1, width=32, num_heads=1),
            structure=StackSizes(depth=1, width=32, num_heads=1),
            grid=(4, 4),
            latent_channels=4,
            vocab_size=16,
            num_classes=3,
        )
    )

    def init(module, seed):
        return sharding.make(module.init_variables, jax.random.key(seed))

    tokenizer_variables, generator_variables = init(tokenizer, 0), init(generator, 1)

    def sample(
        class_id, keys, flow_steps=3, given=None, kept=None, **changes
    ) -> GranularitySequence:
        return sampler.sample(
            tokenizer,
            generator,
            sampler.Settings(flow_steps=flow_steps, **changes),
            tokenizer_variables,
            generator_variables,
            jnp.asarray(class_id, jnp.int32),
            keys,
            given=given,
            kept=kept,
        )

    return tokenizer, tokenizer_variables, sample


@pytest.mark.parametrize("gumbel_split", [False, True])
def test_samples_are_valid_sequences(small, gumbel_split):
    tokenizer, variables, sample = small
    sequence = sample(
        [0, 1, 2, 1], jax.random.split(jax.random.key(2), 4), gumbel_split=gumbel_split
    )
    np.testing.assert_array_equal(np.sort(sequence.structure), np.tile(np.arange(16), (4, 1)))
    assert sequence.tokens.shape == (4, 31)
    assert (np.asarray(sequence.tokens) >= 0).all() and (np.asarray(sequence.tokens) < 16).all()
    assert len(np.unique(sequence.tokens, axis=0)) == 4
    images = inference.images_of(tokenizer, variables, sequence)
    stages = inference.stage_images_of(tokenizer, variables, sequence)
    assert images.shape == (4, 8, 8, 3) and stages.shape == (4, 5, 8, 8, 3)
    np.testing.assert_allclose(stages[:, -1].astype(int), images.astype(int), atol=1)


def test_a_sample_depends_on_its_class_and_key_alone(small):
    sample = small[2]
    keys = jax.random.split(jax.random.key(3), 4)
    together = sample([0, 1, 2, 1], keys)
    alone = sample([2, 1], keys[2:])
    np.testing.assert_array_equal(together.structure[2:], alone.structure)
    np.testing.assert_array_equal(together.tokens[2:], alone.tokens)


def test_gumbel_split_draws_other_structures(small):
    sample = small[2]
    keys = jax.random.split(jax.random.key(4), 4)
    drawn = sample([0, 1, 2, 1], keys, gumbel_split=True)
    top = sample([0, 1, 2, 1], keys)
    assert (np.asarray(drawn.structure) != np.asarray(top.structure)).any()


def _random_sequence(seed, batch):
    rng = np.random.default_rng(seed)
    structure = np.stack([rng.permutation(16) for _ in range(batch)]).astype(np.int32)
    tokens = rng.integers(0, 16, (batch, 31)).astype(np.int32)
    return GranularitySequence(jnp.asarray(structure), jnp.asarray(tokens))


def test_given_stages_come_out_as_given_and_the_rest_varies(small):
    sample = small[2]
    keys = jax.random.split(jax.random.key(6), 4)
    classes = [0, 1, 2, 1]
    reference = _random_sequence(0, 4)
    free = sample(classes, keys)
    for structure_stages in range(6):
        for content_stages in {0, structure_stages // 2, structure_stages}:
            given = sampler.Given(reference, structure_stages, content_stages)
            found = sample(classes, keys, given=given)
            np.testing.assert_array_equal(np.sort(found.structure), np.tile(np.arange(16), (4, 1)))
            for stage in range(5):
                same = {
                    "structure": granularity.labels_at(found.structure, stage)
                    == granularity.labels_at(reference.structure, stage),
                    "content": granularity.stage_tokens(found.tokens, stage)
                    == granularity.stage_tokens(reference.tokens, stage),
                }
                assert same["structure"].all() == (stage < max(structure_stages, 1))
                assert same["content"].all() == (stage < content_stages)
            if structure_stages < 2 and not content_stages:
                np.testing.assert_array_equal(found.structure, free.structure)
                np.testing.assert_array_equal(found.tokens, free.tokens)


@pytest.fixture(scope="module")
def image(small):
    """A latent, not quantized, and the sequence and the canvases that it is quantized to."""
    tokenizer, variables, _ = small
    images = jax.random.uniform(jax.random.key(8), (1, 8, 8, 3), minval=-1)
    latent, structure = inference.latents_of(tokenizer, variables, images)
    sequence = inference.sequences_of(tokenizer, variables, images)
    np.testing.assert_array_equal(sequence.structure, structure)
    return latent, sequence, _canvases(tokenizer, variables, sequence)


def _kept(image, is_free, batch=4):
    latent, sequence, _ = image
    kept = sampler.Kept(jnp.where(is_free, -1, sequence.structure), latent)
    return jax.tree.map(lambda x: jnp.repeat(x, batch, axis=0), kept)


def test_an_image_that_is_kept_as_a_whole_comes_out_as_it_was(small, image):
    keys = jax.random.split(jax.random.key(9), 4)
    found = small[2]([0, 1, 2, 3], keys, kept=_kept(image, np.zeros((1, 16), bool)))
    for array, expected in zip(found, image[1], strict=True):
        np.testing.assert_array_equal(array, np.repeat(expected, 4, axis=0))


@pytest.mark.parametrize("changes", [{}, {"gumbel_split": True}, {"structure_stages": (0,)}])
def test_kept_positions_keep_their_structure_and_the_others_are_drawn(small, image, changes):
    keys, is_free = jax.random.split(jax.random.key(10), 4), np.arange(16)[None] < 9
    found = small[2]([0, 0, 0, 0], keys, kept=_kept(image, is_free), **changes)
    np.testing.assert_array_equal(np.sort(found.structure), np.tile(np.arange(16), (4, 1)))
    leaves = np.asarray(image[1].structure)[0]
    np.testing.assert_array_equal(found.structure[:, 9:], np.tile(leaves[9:], (4, 1)))
    assert len(np.unique(found.structure, axis=0)) > 1
    free_leaves = granularity.stage_tokens(found.tokens, 4)[:, leaves[:9]]
    assert all(len(np.unique(free_leaves[:, n])) > 1 for n in range(9))
    # Stage 0 has kept positions: before anything is drawn, its token is that of their mean.
    assert len(np.unique(found.tokens[:, 0])) == 1


def test_what_is_kept_is_repaired_after_what_is_drawn_beside_it(small, image):
    """All but one cluster are kept. Where they are, the latent is about as near as it was, and
    nearer than with the image's own tokens, which what is drawn spoils."""
    tokenizer, variables, sample = small
    latent, sequence, canvases = image
    keys = jax.random.split(jax.random.key(11), 4)
    ratios = {"found": [], "own": []}
    for cluster in range(4):
        is_free = np.asarray(granularity.labels_at(sequence.structure, 2) == cluster)
        found = sample([0, 1, 2, 3], keys, kept=_kept(image, is_free))
        own = np.array(found.tokens)
        for stage in range(5):
            of_kept = granularity.labels_at(sequence.structure, stage)[~is_free]
            heap = 2**stage - 1 + np.unique(of_kept)
            own[:, heap] = sequence.tokens[0, heap]

        def error(canvas, is_free=is_free):
            return np.square(np.asarray(canvas - latent))[:, ~is_free[0]].mean()

        for name, tokens in {"found": found.tokens, "own": jnp.asarray(own)}.items():
            made = GranularitySequence(found.structure, tokens)
            canvas = _canvases(tokenizer, variables, made)[:, -1]
            ratios[name].append(error(canvas) / error(canvases[:, -1]))
    assert np.mean(ratios["found"]) < 1.1
    assert np.mean(ratios["found"]) < np.mean(ratios["own"])


@pytest.mark.parametrize("name", STRUCTURE_GENERATORS)
def test_structure_generators_hold_what_is_kept(name):
    stack = StackSizes(depth=1, width=32, num_heads=1)
    sizes = Sizes(stack, stack, (4, 4), 4, 16, 3, structure_generator=name)
    network = Generator(sizes).structure
    params = sharding.make(network.init_params, jax.random.key(0))
    structure = _random_sequence(3, 2).structure
    keys = jax.random.split(jax.random.key(12), 2)
    noise, canvas = network.noise(keys), jax.random.normal(jax.random.key(13), (2, 16, 4))

    def scores(held):
        given = (canvas, structure, jnp.int32(1), jnp.arange(2), noise, jnp.float32(2))
        return np.asarray(network.scores(params, *given, 4, held))

    is_free = np.arange(16) < 6
    bits = granularity.structure_embedding(structure, 4) - 1
    held = scores(jnp.where(is_free[:, None], 0.0, bits))
    channels = [1] if name == "masked" else [0, 1, 2, 3]  # Which knows nothing of later ones.
    np.testing.assert_array_equal(
        held[:, ~is_free][..., channels], bits[:, ~is_free][..., channels]
    )
    np.testing.assert_array_equal(scores(jnp.zeros((2, 16, 4))), scores(None))


def test_structure_may_look_ahead(small):
    """Stages 0..2 of 4 have structure to generate; the given ones need none."""
    sample = small[2]
    keys, classes = jax.random.split(jax.random.key(7), 4), [0, 1, 2, 1]
    everywhere = sample(classes, keys)
    jax.tree.map(
        np.testing.assert_array_equal,
        sample(classes, keys, structure_stages=(0, 1, 2)),
        everywhere,
    )
    ahead = sample(classes, keys, structure_stages=(0,))
    np.testing.assert_array_equal(np.sort(ahead.structure), np.tile(np.arange(16), (4, 1)))
    same = [
        granularity.labels_at(ahead.structure, k) == granularity.labels_at(everywhere.structure, k)
        for k in range(5)
    ]
    assert same[1].all() and not same[2].all()  # The first map is from the same run.
    given = sampler.Given(everywhere, 2, 0)
    jax.tree.map(  # The first map that is not given is generated, whatever is asked.
        np.testing.assert_array_equal,
        sample(classes, keys, given=given, structure_stages=(0, 2)),
        sample(classes, keys, given=given),
    )


def test_top_k_one_is_greedy(small):
    sample = small[2]
    keys = jax.random.split(jax.random.key(5), 3)
    greedy = sample([0, 1, 2], keys, temperature=0.0)
    one = sample([0, 1, 2], keys, top_k=1)
    np.testing.assert_array_equal(greedy.tokens, one.tokens)


def test_top_p_schedule_falls_from_first_to_second_value():
    schedule = [top_p_at((1.0, 0.5), stage, 8) for stage in range(9)]
    a = [8 ** (i / 8) for i in range(9)]
    np.testing.assert_allclose(schedule, [1 - 0.5 * (a_i - 1) / 7 for a_i in a])
