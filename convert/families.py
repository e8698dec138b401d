"""All families that `python -m convert` knows, and LPIPS, which needs two files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from convert import arcface, e4e, inception, lpips, mobilestylegan, stylegan2
from convert.rules import Bundle, Family, StateDict

FAMILIES: tuple[Family, ...] = (
    stylegan2.NVLABS,
    stylegan2.ROSINALITY,
    arcface.IR_SE,
    arcface.IR,
    lpips.TORCH,
    lpips.FLAX,
    mobilestylegan.MOBILESTYLEGAN,
    e4e.ENCODER,
    inception.INCEPTION,
)
BUNDLES: tuple[Bundle, ...] = (e4e.BUNDLE,)


@dataclass(frozen=True)
class Part:
    """A file that makes a network only together with others.

    Attributes:
        title: what a person calls it.
        recognises: whether a state dict is this part, judged by its keys.
    """

    title: str
    recognises: Callable[[StateDict], bool]


# Given together, these two are merged into one state dict.
LPIPS_PARTS = (
    Part(
        "torchvision's network (vgg16-397923af.pth or alexnet-owt-7be5be79.pth)",
        lambda state: "features.0.weight" in state and lpips.HEAD not in state,
    ),
    Part(
        "the lpips package's heads (vgg.pth or alex.pth)",
        lambda state: lpips.HEAD in state and "features.0.weight" not in state,
    ),
)


def family_of(state: StateDict) -> Family | None:
    """Returns the first family that recognises a state dict."""
    return next((family for family in FAMILIES if family.recognises(state)), None)


def bundle_of(data: Any) -> Bundle | None:
    """Returns the first kind of several networks that recognises a file's contents."""
    if not isinstance(data, Mapping):
        return None
    return next((bundle for bundle in BUNDLES if bundle.recognises(data)), None)


def part_of(state: StateDict) -> Part | None:
    """Returns which part of LPIPS a state dict is."""
    return next((part for part in LPIPS_PARTS if part.recognises(state)), None)
