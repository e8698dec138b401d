"""Known files that cannot be converted: how they are recognised, and what to do."""

from collections.abc import Callable

import numpy as np

from convert.rules import StateDict


def _shape(state: StateDict, key: str) -> tuple[int, ...]:
    return np.shape(state.get(key, 0))


# Why the file cannot be converted, and what to do -> whether it is such a file.
UNKNOWN: dict[str, Callable[[StateDict], bool]] = {
    "a StyleGAN3 generator, which is not supported; use a StyleGAN2": lambda state: (
        bool({"synthesis.input.freqs", "synthesis.input.weight"} & state.keys())
    ),
    "FID statistics, not a network; config.evaluate.fid_real takes them as they are": (
        lambda state: {"mu", "sigma"} <= state.keys()
    ),
    "a discriminator; give the file's generator": lambda state: (
        "b4.conv.weight" in state
        or ("final_linear.0.weight" in state and "convs.0.0.weight" in state)
    ),
}


def cause_of(state: StateDict) -> str | None:
    """Returns why a state dict that no family recognises cannot be converted."""
    return next((text for text, test in UNKNOWN.items() if test(state)), None)


def conditional(state: StateDict) -> str | None:
    """Names a generator that takes labels, with NVlabs' names."""
    if "mapping.embed.weight" not in state:
        return None
    return (
        "a conditional generator ('mapping.embed.weight'), which is not supported; use"
        " one that was trained without labels (cond=False)"
    )


def other_architecture(state: StateDict) -> str | None:
    """Names NVlabs' other architectures."""
    if "synthesis.b8.skip.weight" in state:
        name = "resnet"
    elif "synthesis.b4.torgb.weight" in state or not any(
        ".torgb.weight" in key for key in state
    ):
        return None
    else:
        name = "orig"
    example = " ('synthesis.b8.skip.weight')" if name == "resnet" else ""
    return (
        f"a generator with architecture={name!r}{example}, which is not supported; use"
        " one with architecture='skip', the default"
    )


def not_rgb(key: str, axis: int) -> Callable[[StateDict], str | None]:
    """Names a generator of images that are not RGB, by its output layer's kernel."""

    def cause(state):
        shape = _shape(state, key)
        if len(shape) <= axis or shape[axis] in (0, 3):
            return None
        colours = "grey images" if shape[axis] == 1 else f"{shape[axis]} channels"
        return (
            f"a generator of {colours} ({key!r} has shape {list(shape)}); only RGB"
            " images are supported, so use one that was trained on them"
        )

    return cause


def squeezenet(state: StateDict) -> str | None:
    """Names LPIPS's third network."""
    if not any(key.endswith(".squeeze.weight") for key in state):
        return None
    return "LPIPS with SqueezeNet, which is not supported; use VGG16 or AlexNet"


def tface(state: StateDict) -> str | None:
    """Names an identity encoder whose units normalise between the convolutions."""
    if len(_shape(state, "body.0.res_layer.4.weight")) != 4:
        return None
    return (
        "an identity encoder in TFace's layout (batch norm after each unit's first"
        " convolution), which is not supported; use CurricularFace_Backbone.pth of"
        " HuangYG123/CurricularFace"
    )
