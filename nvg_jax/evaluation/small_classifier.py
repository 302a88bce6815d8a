"""A small classifier of a dataset's images, whose features stand where Inception is out of place.

Inception knows photographs. Of digits or rendered scenes its features say little; a network that
has learned to tell their classes apart says more, and is trained in a minute.
"""

from __future__ import annotations

import contextlib
import functools
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from nvg_jax import keys, pixels, sharding
from nvg_jax.data import pipeline
from nvg_jax.data.stream import Order
from nvg_jax.frozen.inception import ImageFeatures
from nvg_jax.frozen.weights import Frozen
from nvg_jax.progress import track
from nvg_jax.weights import load_weights, save_weights

log = logging.getLogger(__name__)

_SMALLEST_MAP = 4
_SPATIAL_CHANNELS = 7  # As many as sFID takes of Inception.


class SmallClassifier(nn.Module):
    """Strided convolutions down to at most 4 x 4 positions, their mean, and a linear layer."""

    image_size: int
    num_classes: int
    width: int = 64

    @property
    def architecture(self) -> str:
        """What a checkpoint has to agree with, in one line."""
        return (
            f"classifier({self.num_classes} classes, {self.image_size} pixels, width {self.width})"
        )

    def example(self) -> Float[Array, "1 height width 3"]:
        """Input for `init`."""
        return jnp.zeros((1, self.image_size, self.image_size, 3))

    @nn.compact
    def __call__(self, images: Float[Array, "B height width 3"]) -> ImageFeatures:
        """The features of images in [-1, 1]; `pool` is of the network's width."""
        # Large images are mostly looked at in half their size.
        x = self._layer(images, self.width // 2, 1 if self.image_size <= 32 else 2)
        while x.shape[1] > _SMALLEST_MAP:
            x = self._layer(x, self.width, 2)
        x = self._layer(x, self.width, 1)
        pool = x.mean(axis=(1, 2))
        spatial = x[..., :_SPATIAL_CHANNELS].reshape(len(x), -1)
        return ImageFeatures(pool, spatial, nn.Dense(self.num_classes)(pool))

    def _layer(self, x: Float[Array, "B height width C"], channels: int, stride: int) -> Array:
        x = nn.Conv(channels, (3, 3), strides=stride, use_bias=False)(x)
        return nn.relu(nn.GroupNorm(num_groups=8)(x))


def trained(config: ConfigDict, workdir: str, mesh: Mesh) -> Frozen:
    """The classifier of the config's dataset on all devices; it is trained once and kept."""
    data, settings = config.data, config.evaluation.classifier
    module = SmallClassifier(data.image_size, data.num_classes)
    architecture = (
        f"{settings.epochs} epochs of {pipeline.contents(data)} {data.train_split}, "
        f"{module.architecture}"
    )
    path = epath.Path(workdir) / "classifier"
    if path.exists():
        abstract = sharding.abstract(module.init, mesh, jax.random.key(0), module.example())
        return Frozen(module, load_weights(path, abstract, architecture))
    variables = train(data, settings, config.seed).variables
    variables = sharding.place_copies(variables, sharding.replicated(mesh))
    save_weights(path, variables, architecture)
    log.info("wrote the classifier whose features are compared: %s", path)
    return Frozen(module, variables)


def train(data: ConfigDict, settings: ConfigDict, seed: int) -> Frozen:
    """A classifier of the training split, the same for the same seed, with a progress bar.

    Args:
      data: `config.data`.
      settings: `config.evaluation.classifier`.
      seed: of the initial weights and the order of the images.

    Raises:
      UserError: what `pipeline.train_iterator` raises.
    """
    module = SmallClassifier(data.image_size, data.num_classes)
    images = pipeline.num_examples(data, data.train_split)
    num_steps = max(1, round(settings.epochs * images / settings.batch_size))
    optimizer = optax.adamw(optax.cosine_decay_schedule(settings.learning_rate, num_steps))
    key = keys.named(seed, "classifier")
    variables = sharding.make(module.init, key, module.example())
    state = (variables, optimizer.init(variables))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, images, labels):
        def loss(variables):
            logits = module.apply(variables, images).logits
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        variables, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(variables), moments, variables)
        return optax.apply_updates(variables, updates), moments

    order = keys.integer(seed, "classifier", "images")
    batches = pipeline.train_iterator(data, Order(settings.batch_size, order))
    with contextlib.closing(batches):
        for _ in track(range(num_steps), "classifier", unit="step"):
            batch = next(batches)
            images = pixels.from_uint8(jnp.asarray(batch["image"]))
            state = step(state, images, batch["label"])
    return Frozen(module, state[0])
