"""The adversarial side of the tokenizer's training (paper, Appendix A).

A discriminator of trainable heads on the frozen features of DINO tells images from reconstructions.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from nvg_jax.frozen import resize
from nvg_jax.frozen.vit import VisionTransformer
from nvg_jax.tokenizer.augment import augment
from nvg_jax.training import optimizer

Tree = Any
Images = Float[Array, "B height width 3"]
View = Float[Array, "B size size 3"]
Logits = Float[Array, "B logits"]

LECAM_DECAY = 0.999


def fooling_loss(fake: Logits) -> Float[Array, ""]:
    """What reconstructions are trained for, non-saturating: softplus of minus their mean logit."""
    return jax.nn.softplus(-jnp.mean(fake))


def hinge_loss(real: Logits, fake: Logits) -> Float[Array, ""]:
    """What the discriminator is trained for: real logits above 1, the others below -1."""
    return 0.5 * (jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + fake)))


def lecam_loss(real: Logits, fake: Logits, anchors: Float[Array, "2"]) -> Float[Array, ""]:
    """Keeps logits from drifting past what the other side has been given (Tseng et al., 2021).

    anchors: moving averages of the mean real and the mean fake logit.
    """
    too_real = jax.nn.relu(real - anchors[1])
    too_fake = jax.nn.relu(anchors[0] - fake)
    return jnp.mean(too_real**2) + jnp.mean(too_fake**2)


class Discriminator(nn.Module):
    """One head for each readout of the features; real images get high logits, others low ones.

    The collection `batch_stats` holds the vectors of the spectral norms' power iteration, which
    goes on by one round in each call with `batch_stats` mutable.
    """

    @nn.compact
    def __call__(self, readouts: Float[Array, "B readouts patches D"]) -> Logits:
        """The logits of all readouts at all patches.

        Batch norm takes its statistics over the images of the call, wherever they lie: under jit
        that is a mean over all devices.
        """
        heads = nn.vmap(
            _Head,
            in_axes=1,
            out_axes=1,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
        )
        logits = heads(name="heads")(readouts)
        return rearrange(logits, "b r n -> b (r n)")


class _Head(nn.Module):
    """Three spectrally normalised convolutions along the positions, the second one residual."""

    @nn.compact
    def __call__(self, x: Float[Array, "B patches D"]) -> Float[Array, "B patches"]:
        x = self._block(x, kernel_size=1)
        x = (x + self._block(x, kernel_size=9)) / jnp.sqrt(2.0)
        return _spectral_conv(x, features=1, kernel_size=1)[..., 0]

    def _block(
        self, x: Float[Array, "B patches D"], kernel_size: int
    ) -> Float[Array, "B patches D"]:
        x = _spectral_conv(x, x.shape[-1], kernel_size)
        # Batch norm by the statistics of this batch alone: it is never run with averages.
        batch_norm = nn.LayerNorm(epsilon=1e-5, reduction_axes=(0, 1), feature_axes=-1)
        return nn.leaky_relu(batch_norm(x), 0.2)


def _spectral_conv(x: Float[Array, "B patches D"], features: int, kernel_size: int) -> Array:
    conv = functools.partial(nn.Conv, features, (kernel_size,), padding="CIRCULAR")
    norm = nn.SpectralNorm(conv())
    return norm(x, update_stats=norm.is_mutable_collection("batch_stats"))


@flax.struct.dataclass
class AdversaryState:
    """params, stats: the discriminator's variables. anchors: float32 [2], see `lecam_loss`."""

    params: Tree
    stats: Tree
    opt_state: Tree
    anchors: Tree


class Adversary:
    """The discriminator, its optimizer and what both sides lose."""

    def __init__(self, dino: VisionTransformer, config: ConfigDict, num_steps: int):
        """config: the tokenizer's training config."""
        self._dino = dino
        self._discriminator = Discriminator()
        self._size = config.discriminator.input_size
        self._lecam_weight = config.discriminator.lecam_weight
        self._optimizer = optimizer.create(
            config, num_steps, weight_decay=config.discriminator.weight_decay
        )

    def init(self, key: Key[Array, ""]) -> AdversaryState:
        """The state before the first step."""
        positions = (self._size // self._dino.patch_size) ** 2
        readouts = jnp.zeros((1, self._dino.num_readouts, positions, self._dino.width))
        variables = self._discriminator.init(key, readouts)
        params = variables["params"]
        return AdversaryState(
            params=params,
            stats=variables["batch_stats"],
            opt_state=self._optimizer.init(params),
            anchors=jnp.zeros(2),
        )

    def losses(
        self,
        params: Tree,
        state: AdversaryState,
        dino_variables: Tree,
        real: Images,
        fake: Images,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Tree]]:
        """What the images `fake` lose, what the discriminator loses, and what `update` needs.

        params: the discriminator's. The gradient of the first loss reaches `fake` alone, that of
        the second `params` alone. Both sides see the same augmented images, so that those run
        through the frozen network once.
        """
        view_key, real_key, fake_key = jax.random.split(key, 3)

        def features(images: Images, augment_key: Array) -> Float[Array, "B readouts patches D"]:
            view = _crop_or_shrink(augment(images, augment_key), view_key, self._size)
            return self._dino.apply(dino_variables, view, method="readouts")

        def judge(params: Tree, readouts: Array) -> tuple[Logits, Tree]:
            variables = {"params": params, "batch_stats": state.stats}
            return self._discriminator.apply(variables, readouts, mutable=["batch_stats"])

        real_features = jax.lax.stop_gradient(features(real, real_key))
        fake_features = features(fake, fake_key)
        seen_by_fake, _ = judge(jax.lax.stop_gradient(params), fake_features)
        real_logits, updated = judge(params, real_features)
        fake_logits, _ = judge(params, jax.lax.stop_gradient(fake_features))
        lecam = lecam_loss(real_logits, fake_logits, state.anchors)
        discriminator_loss = hinge_loss(real_logits, fake_logits) + self._lecam_weight * lecam
        aux = {
            "stats": updated["batch_stats"],
            "logits": jnp.stack([jnp.mean(real_logits), jnp.mean(fake_logits)]),
        }
        return fooling_loss(seen_by_fake), discriminator_loss, aux

    def update(self, state: AdversaryState, grads: Tree, aux: dict[str, Tree]) -> AdversaryState:
        """The state after one step; `aux` as `losses` gave it."""
        updates, opt_state = self._optimizer.update(grads, state.opt_state, state.params)
        return AdversaryState(
            params=optax.apply_updates(state.params, updates),
            stats=aux["stats"],
            opt_state=opt_state,
            anchors=optax.incremental_update(aux["logits"], state.anchors, 1.0 - LECAM_DECAY),
        )


def _crop_or_shrink(images: Images, key: Key[Array, ""], size: int) -> View:
    """A random square of `size`, the same of all images, or, as often, all of them shrunk."""
    if images.shape[1] == size:
        return images
    choice_key, place_key = jax.random.split(key)
    batch, side, _, channels = images.shape
    top, left = jax.random.randint(place_key, (2,), 0, side - size + 1)

    def crop(images: Images) -> View:
        return jax.lax.dynamic_slice(images, (0, top, left, 0), (batch, size, size, channels))

    def shrink(images: Images) -> View:
        return resize.area(images, (size, size))

    return jax.lax.cond(jax.random.bernoulli(choice_key), crop, shrink, images)
