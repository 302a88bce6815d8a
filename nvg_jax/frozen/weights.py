"""The frozen networks: what they are made of, where that is published, and how it is loaded.

The weights belong to their publishers and are under the licences named here. They are fetched
once, by `python -m nvg_jax.interop.fetch`; nothing here uses the network.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array, Key

from nvg_jax import sharding
from nvg_jax.errors import UserError
from nvg_jax.frozen.inception import Inception
from nvg_jax.frozen.lpips import LPIPS
from nvg_jax.frozen.vit import dino_vits16, dinov2_vitb14
from nvg_jax.weights import load_weights


class PublishedFile(NamedTuple):
    """A file of PyTorch weights.

    sha256_prefix: how its SHA-256 begins, where the publisher says so; else ''.
    """

    name: str
    description: str
    address: str
    licence: str
    sha256_prefix: str = ""

    @property
    def file_name(self) -> str:
        return self.address.rsplit("/", 1)[-1]


class Network(NamedTuple):
    """A frozen network.

    image_size: side of the smallest images that it can look at.
    num_inputs: batches of images that it compares.
    files: names of the published files that hold its weights.
    """

    name: str
    module: nn.Module
    image_size: int
    num_inputs: int
    files: tuple[str, ...]

    @property
    def architecture(self) -> str:
        """One line that tells it from other networks."""
        return f"the frozen network {self.name}"

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Variables of random numbers."""
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        return self.module.init(key, *[images] * self.num_inputs)


class Frozen(NamedTuple):
    """A frozen network with its weights."""

    module: nn.Module
    variables: dict[str, Any]


FILES = {
    file.name: file
    for file in (
        PublishedFile(
            "vgg16",
            "VGG16 for ImageNet, of torchvision",
            "https://download.pytorch.org/models/vgg16-397923af.pth",
            "BSD-3-Clause",
            "397923af",
        ),
        PublishedFile(
            "lpips_heads",
            "LPIPS v0.1 on VGG16, the weights of the channels",
            "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/"
            "lpips/weights/v0.1/vgg.pth",
            "BSD-2-Clause",
        ),
        PublishedFile(
            "dino_vits16",
            "DINO ViT-S/16",
            "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/"
            "dino_deitsmall16_pretrain.pth",
            "Apache-2.0",
        ),
        PublishedFile(
            "dinov2_vitb14",
            "DINOv2 ViT-B/14",
            "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
            "Apache-2.0",
        ),
        PublishedFile(
            "inception",
            "InceptionV3 of the FID",
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
            "pt_inception-2015-12-05-6726825d.pth",
            "Apache-2.0",
            "6726825d",
        ),
    )
}

NETWORKS = {
    network.name: network
    for network in (
        Network("lpips", LPIPS(), 16, 2, ("vgg16", "lpips_heads")),
        Network("dino", dino_vits16(), 16, 1, ("dino_vits16",)),
        Network("dinov2", dinov2_vitb14(), 14, 1, ("dinov2_vitb14",)),
        Network("inception", Inception(), 1, 1, ("inception",)),
    )
}


def weights_directory(directory: epath.PathLike = "") -> epath.Path:
    """The folder of all frozen networks' weights.

    '' for the default: $NVG_JAX_CACHE, or ~/.cache/nvg_jax.
    """
    return epath.Path(
        directory or os.environ.get("NVG_JAX_CACHE") or "~/.cache/nvg_jax"
    ).expanduser()


def downloads(directory: epath.PathLike = "") -> epath.Path:
    """Where published files are put; directory as of `weights_directory`."""
    return weights_directory(directory) / "downloads"


def how_to_fetch(name: str, directory: epath.PathLike = "") -> str:
    """What to do about something published that is not there."""
    option = f" --directory={directory}" if directory else ""
    return f"run `python -m nvg_jax.interop.fetch {name}{option}` first"


def load(name: str, directory: epath.PathLike = "", random: bool = False) -> dict[str, Any]:
    """The variables of a frozen network.

    Args:
      name: 'lpips', 'dino', 'dinov2' or 'inception'.
      directory: the folder of all frozen networks' weights; '' for the default.
      random: gives fixed random numbers in place of the published weights, for tests and demos.

    Raises:
      UserError: the weights have not been fetched, or are damaged.
    """
    network = NETWORKS[name]
    if random:
        return sharding.make(network.init, jax.random.key(0))
    where = weights_directory(directory) / name
    if not where.exists():
        raise UserError(f"no weights of {name} in {where}: {how_to_fetch(name, directory)}")
    return load_weights(where, abstract(name), network.architecture)


def load_network(name: str, directory: epath.PathLike = "", random: bool = False) -> Frozen:
    """A frozen network with its weights; arguments and errors as in `load`."""
    return Frozen(NETWORKS[name].module, load(name, directory, random))


def abstract(name: str) -> dict[str, Any]:
    """Shapes and dtypes of a frozen network's variables."""
    return jax.eval_shape(NETWORKS[name].init, jax.random.key(0))
