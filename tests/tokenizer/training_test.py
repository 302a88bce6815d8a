"""Training the tokenizer on one batch, and measuring its canvases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax import sharding
from nvg_jax.checkpoint import TrainCheckpointer
from nvg_jax.errors import UserError
from nvg_jax.frozen.vit import VisionTransformer
from nvg_jax.frozen.weights import Frozen, load_network
from nvg_jax.tokenizer.model import Tokenizer, build_tokenizer, canvas_scales
from nvg_jax.tokenizer.training import TokenizerTask, with_canvas_scales
from nvg_jax.training.loop import Schedule, make_step
from tests.states import first_state

SCHEDULE = Schedule(8, num_steps=100, epoch_steps=5)
KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def make_task(make_tiny_config):
    def make(**changes) -> TokenizerTask:
        config = make_tiny_config()
        training = config.tokenizer.training
        training.warmup_steps, training.codebook_warmup_epochs = 0, 1.0
        training.update(changes)
        return TokenizerTask(build_tokenizer(config), training, SCHEDULE)

    return make


@pytest.fixture(scope="module")
def task(make_task):
    """As configured. Its step is traced and compiled once for all tests."""
    return make_task()


def fresh_state(task, variables=None):
    return first_state(task, KEY, variables)


@functools.cache
def step_of(task):
    return make_step(task, fresh_state(task))


def train(task, state, batch, num_steps):
    """The state after some steps, and the metrics of each."""
    run, history = step_of(task), []
    for _ in range(num_steps):
        state, metrics = run(state, task.frozen, batch, jax.random.key(2))
        history.append(jax.device_get(metrics))
    return state, history


@pytest.fixture
def batch():
    return {"image": jax.random.uniform(jax.random.key(0), (8, 8, 8, 3), minval=-1.0)}


def test_loss_falls_and_metrics_are_complete(task, batch):
    state, history = train(task, fresh_state(task), batch, 20)
    assert int(state.step) == 20
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    last = history[-1]
    np.testing.assert_allclose(last["loss"], last["loss/l1"] + last["loss/quantization"], rtol=1e-5)
    # 8 images: 8 tokens at stage 0, 16 at stage 1, ...
    np.testing.assert_array_equal(last["token_counts"].sum(1), [8, 16, 32, 64, 128])
    assert last["canvas_error_by_stage"].shape == (5,)
    assert last["canvas_error_by_stage"][-1] == 0.0


@pytest.mark.slow
def test_microbatches_give_the_same_gradient(task, make_task, batch):
    """Without the discriminator, whose batch norm sees its micro-batch alone, for one."""
    states = [train(one, fresh_state(one), batch, 1) for one in (task, make_task(microbatches=2))]
    (whole, (metrics,)), (divided, (divided_metrics,)) = states
    for name in ("loss", "loss/l1", "loss/quantization", "gradient_norm"):
        np.testing.assert_allclose(metrics[name], divided_metrics[name], rtol=1e-4)
    np.testing.assert_array_equal(metrics["token_counts"], divided_metrics["token_counts"])
    # Adam's first moment is the gradient itself, up to a factor.
    moments = [jax.tree.leaves(s.opt_state[1][0].mu) for s in (whole, divided)]
    for one, other in zip(*moments, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3 * np.abs(one).max() + 1e-8)


def test_the_warmup_moves_codes_that_no_cluster_chose(task, batch):
    variables = jax.device_get(fresh_state(task).ema)
    far = np.array(variables["params"]["quantizer"]["codebook"])
    far[0] = 1.5  # Farther from all data than the other codes.
    variables["params"]["quantizer"]["codebook"] = far

    def moved(step):
        state = fresh_state(task, variables)
        state = state.replace(step=jax.device_put(jnp.int32(step), state.step.sharding))
        state, (metrics,) = train(task, state, batch, 1)
        assert metrics["token_counts"][:, 0].sum() == 0
        return np.abs(state.params["quantizer"]["codebook"][0] - far[0]).max()

    assert moved(step=4) > 0.0
    assert moved(step=5) == 0.0  # The warm-up is an epoch, of five steps.


def test_canvas_scales_are_one_over_the_standard_deviation(task, batch):
    variables = fresh_state(task).ema
    halves = batch["image"][:4], batch["image"][4:]
    scales = canvas_scales(with_canvas_scales(task.tokenizer, variables, halves))
    tokenize = jax.jit(functools.partial(task.tokenizer.apply, method=Tokenizer.tokenize))
    _, canvases = tokenize(variables, batch["image"])
    assert scales[0] == 1.0
    np.testing.assert_allclose(scales[1:], 1 / np.std(canvases, axis=(0, 2, 3))[1:], rtol=1e-4)


def test_pictures_show_the_batch(task, batch):
    state = fresh_state(task)
    picture = task.pictures(state, batch)["reconstructions"]
    assert picture.dtype == np.uint8 and picture.std() > 0


@pytest.fixture(scope="module")
def frozen():
    """LPIPS, and a narrow DINO."""
    module = VisionTransformer(16, width=32, num_heads=2, native_grid=2, layer_scale=False)
    variables = jax.jit(module.init)(KEY, jnp.zeros((1, 16, 16, 3)))
    return load_network("lpips", random=True), Frozen(module, variables)


@pytest.fixture
def make_full_task(make_tiny_config, frozen):
    """Tasks with every loss, on images of 16 x 16."""

    def make(**changes) -> TokenizerTask:
        config = make_tiny_config()
        config.data.image_size = 16
        training = config.tokenizer.training
        training.warmup_steps, training.schedule = 0, "linear"
        training.lpips_weight, training.adversarial_weight = 1.0, 0.1
        training.discriminator.input_size = 16
        training.update(changes)
        return TokenizerTask(build_tokenizer(config), training, SCHEDULE, *frozen)

    return make


@pytest.fixture
def large_batch():
    return {"image": jax.random.uniform(jax.random.key(0), (4, 16, 16, 3), minval=-1.0)}


@pytest.mark.slow
def test_both_sides_learn_in_one_step_and_are_saved(make_full_task, large_batch, tmp_path):
    task = make_full_task()
    state = fresh_state(task)
    before = jax.device_get(state)
    state, history = train(task, state, large_batch, 8)
    first, last = history[0], history[-1]
    terms = {"l1": 1.0, "quantization": 1.0, "lpips": 1.0, "adversarial": 0.1}
    total = sum(weight * last[f"loss/{name}"] for name, weight in terms.items())
    np.testing.assert_allclose(last["loss"], total, rtol=1e-5)
    assert last["loss"] < first["loss"] and (
        last["loss/discriminator"] < first["loss/discriminator"]
    )
    gaps = [metrics["real_logit"] - metrics["fake_logit"] for metrics in (first, last)]
    assert gaps[1] > gaps[0]

    def moved(name):
        old, new = (getattr(s, name) for s in (before.adversary, state.adversary))
        return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), old, new)))

    # Biases before a batch norm have no gradient; every other array moves.
    assert moved("stats") and moved("anchors")
    old, new = before.adversary.params["heads"], state.adversary.params["heads"]
    assert all(np.any(old[name]["kernel"] != new[name]["kernel"]) for name in old if "Conv" in name)
    assert "discriminator" not in state.ema["params"]

    abstract = sharding.abstract(task.init_state, sharding.create_mesh(), KEY)
    with TrainCheckpointer(tmp_path, task.architecture, keep=2) as checkpointer:
        checkpointer.save(8, state)
        restored, _ = checkpointer.restore(abstract)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.parametrize("size", [8, 32])
def test_the_discriminator_sees_whole_patches_of_the_image(make_full_task, size):
    with pytest.raises(UserError, match=f"input_size={size} is not a multiple of 16 up to .* 16"):
        make_full_task(discriminator={"input_size": size})


def test_images_too_small_for_lpips(tiny_config, frozen):
    training = tiny_config.tokenizer.training
    training.lpips_weight = 1.0
    with pytest.raises(UserError, match="LPIPS cannot compare images of 8 pixels"):
        TokenizerTask(build_tokenizer(tiny_config), training, SCHEDULE, *frozen)
