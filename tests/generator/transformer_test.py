import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvg_jax import granularity, sharding
from nvg_jax.errors import UserError
from nvg_jax.generator import rope
from nvg_jax.generator.sizes import StackSizes
from nvg_jax.generator.transformer import ATTENTION, Block, Stack

BATCH, TOKENS, WIDTH, HEADS, BITS = 2, 5, 64, 2, 4


@pytest.mark.parametrize(
    "head_width, num_bits, role, spatial",
    [
        (64, 8, 8, 20),
        (64, 7, 10, 20),
        (64, 6, 8, 22),
        (64, 5, 10, 22),
        (64, 4, 8, 24),
        (32, 4, 8, 8),
    ],
)
def test_rope_axes_share_the_head(head_width, num_bits, role, spatial):
    dims = rope.rope_axis_dims(head_width, num_bits)
    assert dims == (role, *[2] * num_bits, spatial, spatial)
    assert sum(dims) == head_width


def test_rope_names_a_head_too_narrow_for_its_axes():
    with pytest.raises(UserError, match="head of width 16 .* 4 structure"):
        rope.rope_axis_dims(16, 4)


def test_rope_ids_are_the_reference_ones(golden_generator):
    expected = golden_generator.state_dict["nvgformer.rope_ids"].astype(np.float32)
    sizes = golden_generator.module.sizes
    undecided = jnp.zeros((1, sizes.num_positions, sizes.last_stage))
    ids = rope.with_class_token(rope.rope_ids(undecided, sizes.grid))
    np.testing.assert_array_equal(ids, expected)


def test_rope_ids_hold_role_structure_and_place():
    embedding = granularity.structure_embedding(jnp.arange(16)[None], 2)
    ids = rope.rope_ids(embedding, (2, 8), role=2)
    np.testing.assert_array_equal(ids[0, 9], [2, 2, 0, 1, 1, 1, 1])


def test_rotation_makes_attention_depend_on_differences_of_ids_alone():
    key_q, key_k, key_ids = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(key_q, (1, TOKENS, HEADS, 32))
    k = jax.random.normal(key_k, (1, TOKENS, HEADS, 32))
    ids = jax.random.randint(key_ids, (1, TOKENS, BITS + 3), 0, 5).astype(jnp.float32)

    def scores(ids):
        angles = rope.rotation(rope.rope_angles(ids, 32))
        rotated = rope.rotate(q, angles), rope.rotate(k, angles)
        return jnp.einsum("bthe,bshe->bhts", *rotated)

    expected = scores(ids)
    np.testing.assert_allclose(scores(ids + 3), expected, atol=1e-4)
    for axis in range(BITS + 3):  # Every axis counts.
        assert jnp.abs(scores(ids.at[0, 0, axis].add(1)) - expected).max() > 1e-2


def test_rotation_turns_pairs_of_neighbours():
    angles = rope.rotation(jnp.array([0.5, 1.0])[None, None])
    pairs = rope.by_halves(jnp.array([1.0, 0.0, 0.0, 2.0]), 4)
    rotated = rope.rotate(pairs[None, None, None], angles)
    expected = [np.cos(0.5), np.sin(0.5), -2 * np.sin(1), 2 * np.cos(1)]
    np.testing.assert_allclose(rotated[0, 0, 0], rope.by_halves(jnp.array(expected), 4), rtol=1e-6)


def test_heads_are_ordered_by_halves_each_by_itself():
    np.testing.assert_array_equal(rope.by_halves(jnp.arange(8.0), 4), [0, 2, 1, 3, 4, 6, 5, 7])


def _sizes(depth, drop_path=0.0, remat="none"):
    return StackSizes(depth, WIDTH, HEADS, drop_path, remat)


def _stack(depth, drop_path=0.0, remat="none", tap=0):
    return Stack(_sizes(depth, drop_path, remat), tap)


@pytest.fixture(scope="module")
def inputs():
    """Tokens, the modulating vector, ids."""
    keys = jax.random.split(jax.random.key(0), 3)
    return (
        jax.random.normal(keys[0], (BATCH, TOKENS, WIDTH)),
        jax.random.normal(keys[1], (BATCH, WIDTH)),
        jax.random.randint(keys[2], (BATCH, TOKENS, BITS + 3), 0, 3).astype(jnp.float32),
    )


@pytest.fixture(scope="module")
def variables(inputs, random_variables):
    """Those of a stack of three blocks."""
    return random_variables(lambda key: _stack(3).init(key, *inputs, True))


def _block(variables, index, inputs, x):
    """One block of the stack by itself."""
    params = jax.tree.map(lambda leaf: leaf[index], variables["params"]["blocks"])
    _, vector, ids = inputs
    angles = rope.rotation(rope.rope_angles(ids, WIDTH // HEADS))
    return Block(_sizes(1), True).apply({"params": params}, x, jnp.float32(0), vector, angles)


def test_parameters_are_stacked_along_depth_and_applied_in_order(inputs, variables):
    shapes = {leaf.shape[0] for leaf in jax.tree.leaves(variables)}
    assert shapes == {3}
    assert variables["params"]["blocks"]["linear1"]["kernel"].shape == (3, WIDTH, 7, WIDTH)
    expected = inputs[0]
    for index in range(3):
        expected = jax.jit(_block, static_argnums=1)(variables, index, inputs, expected)
    actual = jax.jit(_stack(3).apply, static_argnums=4)(variables, *inputs, True)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_blocks_start_out_different(inputs):
    variables = jax.jit(_stack(2).init, static_argnums=4)(jax.random.key(0), *inputs, True)
    first, second = sharding.unnamed(variables)["params"]["blocks"]["linear2"]["kernel"]
    assert jnp.abs(first - second).max() > 0.01


def _loss_gradient(module, variables, inputs):
    def loss(variables):
        rngs = {"drop_path": jax.random.key(1)}
        return jnp.sum(module.apply(variables, *inputs, False, rngs=rngs) ** 2)

    return jax.value_and_grad(loss)(variables)


@pytest.mark.parametrize("tokens, head_width", [(5, 32), (257, 64), (1025, 8)])
def test_splash_attention_is_attention(tokens, head_width):
    """Values and gradients, in blocks that the tokens do not fill."""
    keys = jax.random.split(jax.random.key(0), 4)
    *qkv, weights = (jax.random.normal(key, (2, tokens, 2, head_width)) for key in keys)

    def run(attention):
        def loss(q, k, v):
            return jnp.sum(ATTENTION[attention](q, k, v) * weights)

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*qkv)

    for fused, plain in zip(
        jax.tree.leaves(run("splash")), jax.tree.leaves(run("xla")), strict=True
    ):
        np.testing.assert_allclose(fused, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["xla", "splash"])
@pytest.mark.parametrize("policy", ["full", "dots"])
def test_remat_changes_neither_numbers_nor_gradients(inputs, variables, policy, attention):
    def run(remat, attention="xla"):
        module = Stack(StackSizes(3, WIDTH, HEADS, 0.5, remat, attention))
        return jax.jit(lambda variables: _loss_gradient(module, variables, inputs))(variables)

    for plain, remat in zip(
        jax.tree.leaves(run("none")), jax.tree.leaves(run(policy, attention)), strict=True
    ):
        np.testing.assert_allclose(remat, plain, rtol=1e-4, atol=1e-4 * np.abs(plain).max())


@pytest.mark.parametrize("remat", ["none", "full"])
def test_program_does_not_grow_with_depth(inputs, remat):
    def program_lines(depth):
        module = _stack(depth, drop_path=0.1, remat=remat)
        variables = jax.eval_shape(lambda key: module.init(key, *inputs, True), jax.random.key(0))
        run = jax.jit(lambda variables: _loss_gradient(module, variables, inputs))
        return run.lower(variables).as_text().count("\n")

    # Splitting random keys takes a line more or less; a block more would be hundreds.
    assert abs(program_lines(6) - program_lines(2)) < 10


def test_drop_path_of_rate_zero_drops_nothing(inputs, variables):
    run = jax.jit(_stack(3).apply, static_argnums=4)
    dropped = run(variables, *inputs, False, rngs={"drop_path": jax.random.key(0)})
    np.testing.assert_allclose(dropped, run(variables, *inputs, True), atol=1e-6)


def test_drop_path_drops_whole_samples_and_keeps_the_expectation(inputs, variables):
    count, rate = 1024, 0.25
    alike = [jnp.repeat(array[:1], count, axis=0) for array in inputs]
    params = jax.tree.map(lambda leaf: leaf[0], variables["params"]["blocks"])
    x, vector, ids = alike
    angles = rope.rotation(rope.rope_angles(ids, WIDTH // HEADS))
    out = jax.jit(Block(_sizes(1), False).apply)(
        {"params": params},
        x,
        jnp.float32(rate),
        vector,
        angles,
        rngs={"drop_path": jax.random.key(0)},
    )
    update = _block(variables, 0, inputs, inputs[0])[0] - inputs[0][0]
    dropped = np.all(np.asarray(out) == np.asarray(x), axis=(1, 2))
    assert abs(dropped.mean() - rate) < 0.055  # Four standard deviations.
    kept = np.asarray(out - x)[~dropped]
    expected = np.broadcast_to(update / (1 - rate), kept.shape)
    np.testing.assert_allclose(kept, expected, atol=1e-4)


def test_drop_path_rises_from_zero_in_the_first_block(inputs, variables):
    """With rates 0, 0.45, 0.9 a sample is one of four sums of updates; the first is in all."""
    count = 512
    alike = [jnp.repeat(array[:1], count, axis=0) for array in inputs]
    run = jax.jit(_stack(3, drop_path=0.9).apply, static_argnums=4)
    out = run(variables, *alike, False, rngs={"drop_path": jax.random.key(0)})
    first_alone = _block(variables, 0, inputs, inputs[0])[0]
    is_first_alone = np.all(np.abs(out - first_alone) < 1e-4, axis=(1, 2))
    assert abs(is_first_alone.mean() - 0.45 * 0.9) < 0.09
    assert not np.any(np.all(np.asarray(out) == np.asarray(alike[0]), axis=(1, 2)))
    assert len(np.unique(np.round(np.asarray(out)[:, 0, 0], 3))) == 4


@pytest.mark.parametrize("remat", ["none", "full"])
def test_tap_gives_the_tokens_after_so_many_blocks(inputs, variables, remat):
    stack = _stack(3, remat=remat)
    out, sown = stack.clone(tap=2).apply(variables, *inputs, True, mutable=["intermediates"])
    (tapped,) = sown["intermediates"]["tapped"]
    np.testing.assert_array_equal(out, stack.apply(variables, *inputs, True))
    expected = inputs[0]
    for index in range(2):
        expected = _block(variables, index, inputs, expected)
    np.testing.assert_allclose(tapped, expected, atol=1e-5)


def test_a_tap_keeps_no_copy_of_each_block(inputs, variables):
    def memory(tap):
        def loss(variables):
            stack = _stack(3, remat="full", tap=tap)
            out, sown = stack.apply(variables, *inputs, True, mutable=["intermediates"])
            return jnp.sum(out**2) + sum(map(jnp.sum, jax.tree.leaves(sown)))

        compiled = jax.jit(jax.grad(loss)).lower(variables).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(tap=2) - memory(tap=0) < 3 * inputs[0].nbytes
