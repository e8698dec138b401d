"""MTCNN: `pnet`, `rnet` and `onet`, published in two formats with the same values.

InsightFace_Pytorch has `.npy` files; facenet-pytorch has `.pt` files in its wheel. Both
take RGB, and both keep the first dense layer's inputs in Caffe's column-major order:
InsightFace_Pytorch as [C, W, H], facenet-pytorch as [W, H, C].
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from convert.rules import Family, Rule
from guide_jax.models.mtcnn import LAST_SIDE, O_LAYERS, P_LAYERS, R_LAYERS

# net -> number of convolutions, and its heads in order
NETS = {
    "pnet": (len(P_LAYERS), ("score", "box")),
    "rnet": (len(R_LAYERS), ("score", "box")),
    "onet": (len(O_LAYERS), ("score", "box", "points")),
}


class Published(NamedTuple):
    """File and tensor names in one of the two published formats.

    Attributes:
        title: human-readable name.
        suffix: file name suffix.
        trunk: prefix of all layer names except the heads'.
        dense: base name of dense layers.
        layout: converts the first dense layer's weight to our layout.
    """

    title: str
    suffix: str
    trunk: str
    dense: str
    layout: Callable[[np.ndarray], np.ndarray]

    def holds(self, net: str, state: Mapping) -> bool:
        """Returns whether a file's state dict is the given net in this format."""
        convs, heads = NETS[net]
        head = f"conv{convs + 1}" if net == "pnet" else f"{self.dense}{convs + 2}"
        own = f"{head}_{len(heads)}.weight"
        return own in state and f"{self.trunk}conv1.weight" in state


def _from_wh_c(weight: np.ndarray) -> np.ndarray:
    """Converts [out, W * H * C] to [H * W * C, out]."""
    out, side = len(weight), LAST_SIDE
    x = weight.reshape(out, side, side, -1).transpose(2, 1, 3, 0)
    return x.reshape(-1, out)


def _from_c_wh(weight: np.ndarray) -> np.ndarray:
    """Converts [out, C * W * H] to [H * W * C, out]."""
    out, side = len(weight), LAST_SIDE
    x = weight.reshape(out, -1, side, side).transpose(3, 2, 1, 0)
    return x.reshape(-1, out)


def _rules(published: Published) -> list[Rule]:
    rules = []

    def layer(source: str, path: str, layout: str | Callable) -> None:
        rules.append(Rule(rf"{source}\.weight", f"{path}.kernel", layout))
        rules.append(Rule(rf"{source}\.bias", f"{path}.bias"))

    for net, (convs, heads) in NETS.items():
        trunk = re.escape(f"{net}.{published.trunk}")
        for i in range(convs):
            layer(f"{trunk}conv{i + 1}", f"{net}.trunk.convs.{i}", "conv")
            slope = f"{net}.trunk.acts.{i}.slope"
            rules.append(Rule(rf"{trunk}prelu{i + 1}\.weight", slope))
        last, kind, layout = convs + 1, "conv", "conv"
        if net != "pnet":
            kind, layout = published.dense, "linear"
            layer(f"{trunk}{kind}{last}", f"{net}.dense", published.layout)
            rules.append(Rule(rf"{trunk}prelu{last}\.weight", f"{net}.act.slope"))
            last += 1
        for i, head in enumerate(heads, start=1):
            layer(rf"{net}\.{kind}{last}_{i}", f"{net}.{head}", layout)
    return rules


def _family(published: Published) -> Family:
    firsts = [f"{net}.{published.trunk}conv1.weight" for net in NETS]
    return Family(
        kind="mtcnn",
        title=f"MTCNN face detector ({published.title})",
        recognises=lambda state: all(first in state for first in firsts),
        config=lambda state: {},
        rules=_rules(published),
    )


FACENET_FILES = Published("facenet-pytorch", ".pt", "", "dense", _from_wh_c)
INSIGHTFACE_FILES = Published(
    "InsightFace_Pytorch", ".npy", "features.", "conv", _from_c_wh
)
FACENET, INSIGHTFACE = _family(FACENET_FILES), _family(INSIGHTFACE_FILES)
