"""The published PyTorch weights of the frozen networks as variables of our modules, no PyTorch."""

import re
from typing import Any

from nvg_jax.frozen.weights import Network
from nvg_jax.interop.translate import Release, Tensors, parameter_shapes, translate

_LPIPS_NAMES = (
    (r"^vgg/conv(\d+)/", r"features.\1."),
    (r"^head(\d)/", r"lin\1.model.1."),
    (r"kernel$", "weight"),
)
_VIT_NAMES = (
    (r"/(kernel|scale)$", "/weight"),
    (r"/(attn|mlp)_", r"/\1."),
    (r"_gamma$", ".gamma"),
    (r"^patch_embed/", "patch_embed.proj."),
    (r"^blocks/", "blocks.{}."),
)
_INCEPTION_NAMES = (
    (r"bn_(mean|var)$", r"bn.running_\1"),
    (r"bn_bias$", "bn.bias"),
    (r"bn_scale$", "bn.weight"),
    (r"kernel$", "weight"),
)

_NAMES = {
    "lpips": _LPIPS_NAMES,
    "dino": _VIT_NAMES,
    "dinov2": _VIT_NAMES,
    "inception": _INCEPTION_NAMES,
}

# What we do not look through: VGG16's head, a token of DINOv2's training, the bias of Inception's
# classes and how long its batch norms have been trained.
_IGNORED = re.compile(r"^(classifier\.|mask_token$|fc\.bias$)|\.num_batches_tracked$")


def release_of(network: Network) -> Release:
    """How the published weights of a frozen network are named."""
    return Release(
        names=_NAMES[network.name],
        ignored=_IGNORED,
        misfit=f"the files are not those of {network.name}",
        advice="Remove them, or give the right ones",
    )


def frozen_variables(state_dict: Tensors, network: Network) -> dict[str, Any]:
    """The variables of a frozen network from the tensors of all the files it is made of.

    UserError names every tensor that is missing, not expected or of another shape.
    """
    shapes = parameter_shapes(network.init)
    return {"params": translate(state_dict, shapes, release_of(network))}
