"""All checkpoint families that `python -m convert` supports, and multi-file groups."""

from collections.abc import Callable
from dataclasses import dataclass

from convert import (
    arcface,
    dlib_file,
    e4e,
    eg3d,
    goae,
    inception,
    lpips,
    mobilestylegan,
    mtcnn,
    stylegan2,
)
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
    eg3d.EG3D,
    goae.GOAE,
    inception.INCEPTION,
    mtcnn.FACENET,
    mtcnn.INSIGHTFACE,
    dlib_file.FAMILY,
)
BUNDLES: tuple[Bundle, ...] = (e4e.BUNDLE,)


@dataclass(frozen=True)
class Part:
    """A file that holds only part of a network.

    Attributes:
        title: human-readable name.
        recognises: tells from the keys whether a state dict is this part.
        prefix: prepended to the keys when the parts are merged into one state dict.
        beside: as for `Family`.
    """

    title: str
    recognises: Callable[[StateDict], bool]
    prefix: str = ""
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """The parts that make up one network.

    Attributes:
        title: human-readable name of the network.
        parts: its parts, all of which are needed.
    """

    title: str
    parts: tuple[Part, ...]


def _mtcnn(published: mtcnn.Published) -> Group:
    def part(net: str) -> Part:
        title = f"{published.title}'s {net}{published.suffix}"
        return Part(title, lambda state: published.holds(net, state), f"{net}.")

    return Group("MTCNN", tuple(map(part, mtcnn.NETS)))


GROUPS = (
    Group(
        "LPIPS",
        (
            Part(
                "torchvision's network (vgg16-397923af.pth or"
                " alexnet-owt-7be5be79.pth)",
                lambda state: "features.0.weight" in state and lpips.HEAD not in state,
            ),
            Part(
                "the lpips package's heads (vgg.pth or alex.pth)",
                lambda state: lpips.HEAD in state and "features.0.weight" not in state,
            ),
        ),
    ),
    _mtcnn(mtcnn.FACENET_FILES),
    _mtcnn(mtcnn.INSIGHTFACE_FILES),
)


PARTS = tuple(part for group in GROUPS for part in group.parts)


def family_of(state: StateDict) -> Family | None:
    """Returns the first family that recognises a state dict, or None."""
    return next((family for family in FAMILIES if family.recognises(state)), None)
