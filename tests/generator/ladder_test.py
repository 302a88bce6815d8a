"""Fewer painted stages: tokens, losses and samples are those of the painted ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvg_jax import granularity, sharding
from nvg_jax.errors import UserError
from nvg_jax.generator import sampler
from nvg_jax.generator.model import Generator, build_generator
from nvg_jax.generator.sizes import Sizes, StackSizes
from nvg_jax.generator.training import GeneratorTask
from nvg_jax.granularity import GranularitySequence
from nvg_jax.tokenizer import inference
from nvg_jax.tokenizer.model import Tokenizer, build_tokenizer
from nvg_jax.tokenizer.quantizer import Quantizer
from nvg_jax.training.loop import Schedule, make_step
from tests.states import first_state

LAST, LENGTH, VOCAB, CHANNELS = 4, 16, 16, 4
STACK = StackSizes(depth=1, width=32, num_heads=1)
SOME = [(0, 4), (2, 3, 4)]


@st.composite
def ladders(draw):
    """The last stage, and some of the stages up to it."""
    last_stage = draw(st.integers(1, 8))
    return last_stage, (*sorted(draw(st.sets(st.integers(0, last_stage - 1)))), last_stage)


@given(ladders())
def test_a_heap_holds_the_tokens_of_the_painted_stages(case):
    last_stage, ladder = case
    assert granularity.painted_stages(ladder, last_stage) == ladder
    tokens = np.arange(2 * granularity.num_tokens(ladder)).reshape(2, -1)
    found = granularity.by_stage(tokens, ladder)
    assert [each.shape for each in found] == [(2, 2**stage) for stage in ladder]
    np.testing.assert_array_equal(np.concatenate(found, axis=1), tokens)


@given(ladders())
def test_the_structure_generator_runs_once_between_painted_stages(case):
    last_stage, ladder = case
    grid = (2 ** (last_stage // 2), 2 ** (last_stage - last_stage // 2))
    sizes = Sizes(STACK, STACK, grid, CHANNELS, VOCAB, 3, ladder=ladder)
    for stage, painted in sizes.splits.items():
        assert ladder[:painted] == tuple(k for k in ladder if k <= stage)
    wanted = {0, *ladder} - {last_stage - 1, last_stage}
    assert list(sizes.splits) == sorted(wanted)


def test_all_stages_are_the_default():
    assert granularity.painted_stages((), 3) == (0, 1, 2, 3)
    assert granularity.ladder_in_words((0, 1, 2, 3)) == ""


@pytest.mark.parametrize("ladder", [(0, 2), (4, 0), (0, 2, 2, 4), (-1, 4), (0, 4, 5)])
def test_a_ladder_that_does_not_fit_is_one_line(ladder):
    with pytest.raises(UserError, match=r"config.stages=\(.*of which the last is 4"):
        granularity.painted_stages(ladder, LAST)


def _structure(batch):
    rows = np.tile(np.arange(LENGTH, dtype=np.int32), (batch, 1))
    return np.random.default_rng(0).permuted(rows, axis=1)


@pytest.mark.parametrize("ladder", [(), (0, 2, 4), *SOME])
def test_quantizing_follows_its_definition(ladder):
    """For every painted stage: means, nearest codes, painted and refined, onto the canvas."""
    module = Quantizer(VOCAB, CHANNELS, (4, 4), ladder)
    structure, latent = _structure(2), jax.random.normal(jax.random.key(0), (2, LENGTH, CHANNELS))
    variables = jax.jit(module.init)(jax.random.key(1), latent, structure)
    codebook = np.random.default_rng(2).standard_normal((VOCAB, CHANNELS)).astype(np.float32)
    variables["params"]["codebook"] = jnp.asarray(codebook)
    found = jax.jit(module.apply)(variables, latent, structure)
    refine = jax.jit(functools.partial(module.apply, variables, method="refine"))
    painted, loss = ladder or range(LAST + 1), 0.0
    canvas = np.zeros(latent.shape, np.float32)
    for k, (stage, tokens) in enumerate(
        zip(painted, granularity.by_stage(found.tokens, painted), strict=True)
    ):
        labels = structure >> (LAST - stage)
        np.testing.assert_allclose(found.canvases[:, k], canvas, atol=1e-5)
        for image, cluster in np.ndindex(2, 2**stage):
            mean = (np.asarray(latent) - canvas)[image][labels[image] == cluster].mean(axis=0)
            nearest = np.argmin(((codebook - mean) ** 2).sum(axis=-1))
            assert tokens[image, cluster] == nearest
        vectors = codebook[np.take_along_axis(np.asarray(tokens), labels, axis=1)]
        canvas = canvas + np.asarray(refine(jnp.asarray(vectors), stage))
        loss += 1.25 * np.mean((canvas - latent) ** 2) / len(painted)
    np.testing.assert_allclose(found.canvases[:, -1], canvas, atol=1e-5)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-5)
    sequence = GranularitySequence(jnp.asarray(structure), found.tokens)
    again = jax.jit(functools.partial(module.apply, method="canvases"))(variables, sequence)
    np.testing.assert_allclose(again, found.canvases, atol=1e-5)


def _generator(ladder):
    return Generator(Sizes(STACK, STACK, (4, 4), CHANNELS, VOCAB, 3, ladder=ladder))


def _variables(module, seed):
    """Random ones, those that start at zero included."""
    variables = sharding.make(module.init_variables, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(variables)
    drawn = [
        x + 0.3 * jax.random.normal(key, x.shape)
        for x, key in zip(leaves, jax.random.split(jax.random.key(seed), len(leaves)), strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)


@pytest.fixture(scope="module")
def params():
    """Of a generator, whatever its ladder."""
    return _variables(_generator(()), 1)["params"]


@pytest.fixture(scope="module")
def losses(params):
    """Those at each painted stage, of a generator with a ladder, from canvases before and after."""
    random, batch = np.random.default_rng(1), 4
    heap = random.integers(0, VOCAB, (batch, 2 * LENGTH - 1)).astype(np.int32)
    random_canvases = random.standard_normal((batch, LAST + 2, LENGTH, CHANNELS)).astype(np.float32)
    scales = np.linspace(1, 2, LAST + 2, dtype=np.float32)
    classes, keys = jnp.arange(batch), jax.random.split(jax.random.key(3), batch)

    def of(ladder, canvas_numbers):
        generator = _generator(ladder)
        of_stages = granularity.by_stage(heap)
        tokens = np.concatenate([of_stages[k] for k in generator.sizes.stages], axis=1)
        sequence = GranularitySequence(_structure(batch), tokens)
        canvases = random_canvases[:, canvas_numbers]
        time = jax.random.uniform(jax.random.key(4), (batch, LAST - 1))[
            :, np.array(list(generator.sizes.splits))
        ]
        noise = generator.structure.noise(keys)
        given = sequence, canvases, classes
        content = jax.jit(generator.content.loss)(params["content"], *given, scales)
        structure = jax.jit(generator.structure.loss)(
            params["structure"], *given, None, None, noise, time
        )
        return generator.sizes, content | {"structure": structure}

    return of


@pytest.mark.parametrize("ladder", [(0, 2, 4), (2, 3, 4)])
def test_losses_are_those_of_the_painted_stages_alone(losses, ladder):
    """As where all stages are painted, but the others without effect on the canvas."""
    _, whole = losses((), [sum(k < stage for k in ladder) for stage in range(LAST + 2)])
    sizes, found = losses(ladder, list(range(len(ladder) + 1)))
    # The first painted stage sees the learned canvas, which only stage 0 sees otherwise.
    first = 0 if ladder[0] == 0 else 1
    for name in ("final", "content"):
        assert found[name].shape == (len(ladder),)
        expected = whole[name][np.array(ladder)]
        np.testing.assert_allclose(found[name][first:], expected[first:], rtol=1e-4)
    assert found["structure"].shape == (len(sizes.splits),)
    expected = whole["structure"][np.array(list(sizes.splits))]
    np.testing.assert_allclose(found["structure"], expected, rtol=1e-4)


@pytest.fixture(scope="module", params=SOME, ids=str)
def sampling(request, params):
    """A ladder, its random tokenizer with variables, and what samples."""
    ladder = request.param
    tokenizer = Tokenizer(8, 8, (1, 1), 1, CHANNELS, VOCAB, norm_groups=8, ladder=ladder)
    variables = _variables(tokenizer, 0)
    generator, settings = _generator(ladder), sampler.Settings(flow_steps=2)
    keys = jax.random.split(jax.random.key(5), 4)

    def states(**options):
        given = (tokenizer, generator, settings, variables, {"params": params})
        return list(sampler.stages(*given, jnp.array([0, 1, 2, 0]), keys, **options))

    return ladder, tokenizer, variables, states


def _assert_valid(structure):
    np.testing.assert_array_equal(np.sort(structure), np.tile(np.arange(LENGTH), (4, 1)))


def test_samples_take_a_pass_for_each_painted_stage(sampling, monkeypatch):
    ladder, tokenizer, variables, states = sampling
    calls = {"_missing": [], "_scores": []}

    def count(name, run):
        def counted(*args):
            (number,) = (int(x) for x in args if isinstance(x, np.int32))
            calls[name].append(number)
            return run(*args)

        monkeypatch.setattr(sampler, name, counted)

    for name in calls:
        count(name, getattr(sampler, name))
    found = states()
    assert len(found) == len(ladder)
    assert calls["_missing"] == list(ladder)
    assert calls["_scores"] == list(_generator(ladder).sizes.splits)
    last = found[-1]
    _assert_valid(last.structure)
    assert last.tokens.shape == (4, granularity.num_tokens(ladder))
    sequence = GranularitySequence(last.structure, last.tokens)
    canvases = jax.jit(functools.partial(tokenizer.apply, method="canvases"))(variables, sequence)
    for k, state in enumerate(found):
        np.testing.assert_allclose(state.canvas, canvases[:, k + 1], rtol=1e-4, atol=1e-4)


def test_what_is_given_comes_out_as_given(sampling):
    ladder, _, _, states = sampling
    heap = np.random.default_rng(2).integers(0, VOCAB, (4, granularity.num_tokens(ladder)))
    reference = GranularitySequence(_structure(4), heap.astype(np.int32))
    for count in range(LAST + 2):
        found = states(given=sampler.Given(reference, count, count))[-1]
        _assert_valid(found.structure)
        for stage in range(LAST + 1):
            labels = (granularity.labels_at(x.structure, stage) for x in (found, reference))
            assert np.equal(*labels).all() == (stage < max(count, 1))
        both = (granularity.by_stage(x.tokens, ladder) for x in (found, reference))
        for stage, tokens, expected in zip(ladder, *both, strict=True):
            assert np.array_equal(tokens, expected) == (stage < count)


def test_an_image_that_is_kept_comes_out_as_it_was(sampling):
    _, tokenizer, variables, states = sampling
    images = jax.random.uniform(jax.random.key(6), (4, 8, 8, 3), minval=-1)
    latent, structure = inference.latents_of(tokenizer, variables, images)
    expected = inference.sequences_of(tokenizer, variables, images)
    found = states(kept=sampler.Kept(structure, latent))[-1]
    np.testing.assert_array_equal(found.structure, expected.structure)
    np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_what_is_given_between_painted_stages_is_held(params):
    """The run before knows the split that is given: others follow from it."""
    generator, structure = _generator((0, 4)), jnp.asarray(_structure(2))
    noise = jax.random.normal(jax.random.key(7), (2, LENGTH, LAST))
    canvas, stage = jnp.ones((2, LENGTH, CHANNELS)), jnp.int32(0)
    held = granularity.structure_embedding(structure, 1) - 1
    given = canvas, jnp.zeros_like(structure), stage, jnp.arange(2), noise, None, 3
    found, free = (generator.structure.scores(params["structure"], *given, x) for x in (held, None))
    np.testing.assert_array_equal(found[..., 0], held[..., 0])
    assert (found[..., 1] != free[..., 1]).any()


def test_training_on_a_ladder_lowers_its_losses(tiny_config):
    config = tiny_config
    config.stages = (0, 2, 4)
    training = config.generator.training
    training.warmup_steps, training.learning_rate = 0, 3e-3
    tokenizer, generator = build_tokenizer(config), build_generator(config)
    variables = sharding.make(tokenizer.init_variables, jax.random.key(0))
    schedule = Schedule(8, num_steps=100, epoch_steps=5)
    settings = sampler.Settings.from_config(config.sampling)
    task = GeneratorTask(generator, tokenizer, variables, training, schedule, settings)
    random = np.random.default_rng(3)
    tokens = random.integers(0, tokenizer.vocab_size, (8, granularity.num_tokens((0, 2, 4))))
    batch = {"structure": jnp.asarray(_structure(8)), "tokens": jnp.asarray(tokens, jnp.int32)}
    batch |= {"label": jnp.arange(8, dtype=jnp.int32)}
    state, history = first_state(task, jax.random.key(1)), []
    step = make_step(task, state)
    for number in range(12):
        state, metrics = step(state, task.frozen, batch, jax.random.key(number))
        history.append(jax.device_get(metrics))
    last = history[-1]
    assert last["loss"] < history[0]["loss"]
    terms = sum(last[f"{name}_by_stage"].mean() for name in ("final", "content", "structure"))
    np.testing.assert_allclose(last["loss"], terms, rtol=1e-5)
    assert last["content_by_stage"].shape == (3,) and last["structure_by_stage"].shape == (2,)
    assert last["token_counts"].sum(axis=1).tolist() == [8, 32, 128]


def test_ladders_are_other_architectures(tiny_config):
    whole = [build(tiny_config).architecture for build in (build_tokenizer, build_generator)]
    assert not any("stages" in line for line in whole)
    tiny_config.stages = (0, 1, 2, 3, 4)
    assert whole == [
        build(tiny_config).architecture for build in (build_tokenizer, build_generator)
    ]
    tiny_config.stages = (0, 2, 4)
    for build in (build_tokenizer, build_generator):
        assert build(tiny_config).architecture.endswith(", stages 0,2,4)")
    tiny_config.generator.model.structure = "masked"
    with pytest.raises(UserError, match=r"config.stages=\(0, 2, 4\): masked bits tell nothing"):
        build_generator(tiny_config)
