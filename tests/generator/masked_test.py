"""Masked bits: their loss, the balance of every round, and what is kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nvg_jax import granularity, keys, sharding
from nvg_jax.generator.masked import MaskedBits
from tests.generator.structures import BATCH, LENGTH, SPLITS, random_params


def scores(network, params, examples, stage, steps, guidance=None, held=None):
    (structure, _), canvases, class_id, image_keys = examples
    return jax.jit(network.scores, static_argnames="num_steps")(
        params,
        canvases[:, stage + 1],
        granularity.structure_at(structure, stage),
        jnp.int32(stage),
        class_id,
        network.noise(image_keys),
        guidance,
        num_steps=steps,
        held=held,
    )


def test_the_loss_is_the_cross_entropy_of_masked_bits(sizes, examples):
    network = MaskedBits(sizes)
    params = random_params(network)
    (structure, _), canvases, class_id, image_keys = examples
    found = jax.jit(network.loss)(params, *examples)
    masked = keys.uniform(image_keys, "mask", (SPLITS, LENGTH))
    masked = np.asarray(masked < network.times(image_keys)[..., None])
    apply = jax.jit(network.apply)
    for stage in range(SPLITS):
        bits = np.asarray(structure) >> (3 - stage) & 1
        shown = np.array(granularity.structure_embedding(structure, stage)) - 1
        shown[..., stage] = np.where(masked[:, stage], 0, 2 * bits - 1)
        logits = apply(
            {"params": params},
            jnp.asarray(shown),
            canvases[:, stage + 1],
            structure,
            jnp.full(BATCH, stage),
            jnp.asarray(masked[:, stage].mean(axis=1)),
            class_id,
        )[..., stage]
        chance = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
        error = -np.log(np.where(bits == 1, chance, 1 - chance))
        each = [
            np.mean(e[m]) if m.any() else 0 for e, m in zip(error, masked[:, stage], strict=True)
        ]
        np.testing.assert_allclose(found[stage], np.mean(each), rtol=1e-4)


def test_it_learns_what_the_canvas_shows(sizes, examples):
    network = MaskedBits(sizes)
    sequence, _, class_id, image_keys = examples
    bits = granularity.structure_embedding(sequence.structure, 4)[..., :3] - 1
    answered = (sequence, jnp.stack([bits] * 6, axis=1), class_id, image_keys)
    change = jax.jit(jax.value_and_grad(lambda x: network.loss(x, *answered).mean()))
    optimizer, losses = optax.adam(3e-3), []
    params = sharding.make(network.init_params, jax.random.key(0))
    state = optimizer.init(params)
    for _ in range(60):
        loss, gradient = change(params)
        updates, state = optimizer.update(gradient, state)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_only_masked_bits_and_known_channels_count(sizes, examples):
    network = MaskedBits(sizes)
    params = random_params(network)
    (structure, tokens), *others = examples
    finest = structure ^ 1  # The last bit, which no stage of the structure generator decides.
    other = examples[0]._replace(structure=finest)
    flat = dataclasses.replace(sizes, structure_rope=False)
    for changed in (network, MaskedBits(flat)):
        loss = jax.jit(changed.loss)
        found, expected = (loss(params, one, *others) for one in (other, examples[0]))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_clusters_are_halved_in_any_number_of_rounds(sizes, examples, steps):
    network = MaskedBits(sizes)
    params = random_params(network)
    for stage in range(SPLITS):
        found = scores(network, params, examples, stage, steps, jnp.float32(1.5))
        labels = granularity.labels_at(examples[0].structure, stage)
        member = np.asarray(jax.nn.one_hot(labels, 2**stage, axis=1))
        assert set(np.unique(found[..., stage])) == {-1.0, 1.0}
        assert (np.delete(found, stage, axis=-1) == 0).all()
        np.testing.assert_array_equal(member @ np.asarray(found[..., stage])[..., None], 0)


def test_one_round_takes_the_upper_half_of_logits_and_noise(sizes, examples):
    network = MaskedBits(sizes)
    (structure, _), canvases, class_id, image_keys = examples
    params, stage = random_params(network), 1
    found = scores(network, params, examples, stage, 1)[..., stage]
    logits = jax.jit(network.apply)(
        {"params": params},
        granularity.structure_embedding(structure, stage) - 1,
        canvases[:, stage + 1],
        granularity.structure_at(structure, stage),
        jnp.full(BATCH, stage),
        jnp.ones(BATCH),
        class_id,
    )
    drawn = np.asarray(logits + 1.7 * network.noise(image_keys))[..., stage]
    labels = np.asarray(granularity.labels_at(structure, stage))
    for image in range(BATCH):
        for cluster in range(2**stage):
            inside = np.flatnonzero(labels[image] == cluster)
            upper = inside[np.argsort(-drawn[image, inside])][: len(inside) // 2]
            assert set(inside[found[image, inside] == 1]) == set(upper)


@pytest.mark.parametrize("steps", [1, 4])
def test_kept_positions_keep_their_bits(sizes, examples, steps):
    network = MaskedBits(sizes)
    params, structure = random_params(network), examples[0].structure
    is_kept = keys.uniform(examples[-1], "kept", (LENGTH,)) < 0.6
    bits = granularity.structure_embedding(structure, 4) - 1
    held = jnp.where(is_kept[..., None], bits, 0.0)
    for stage in range(SPLITS):
        found = scores(network, params, examples, stage, steps, held=held)[..., stage]
        np.testing.assert_array_equal(np.where(is_kept, found, 0), held[..., stage])
