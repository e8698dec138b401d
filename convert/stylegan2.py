"""StyleGAN2 generators, with NVlabs' (stylegan2-ada-pytorch) or rosinality's names.

The clamp on layer outputs is not a tensor, so it is not converted. It protects half
precision and is not reached in float32.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from convert.causes import conditional, not_rgb, other_architecture
from convert.rules import (
    ConversionError,
    Family,
    Note,
    Rule,
    StateDict,
    listed,
    mean_w,
    size,
)

NOISE = r".*\.noise_const"  # leaves that files may lack
FIR = np.array([1, 3, 3, 1])
MAPPING_LR_MULTIPLIER = 0.01  # not in the files; the same in all published networks


def smoothing_kernel(total: float) -> np.ndarray:
    """Returns outer([1, 3, 3, 1]) scaled to sum to `total`: float64 `[4, 4]`."""
    return np.outer(FIR, FIR) * (total / FIR.sum() ** 2)


def _check_kernels(state: StateDict, pattern: str, total: float) -> None:
    """Raises unless every matching tensor equals `smoothing_kernel(total)`."""
    wanted = smoothing_kernel(total)
    faults = [
        key
        for key, kernel in state.items()
        if re.fullmatch(pattern, key)
        and (np.shape(kernel) != wanted.shape or not np.allclose(kernel, wanted))
    ]
    if faults:
        raise ConversionError(
            "unsupported smoothing kernel, expected [1, 3, 3, 1]: "
            + listed(faults, ", ")
        )


def _largest_index(state: StateDict, pattern: str) -> int:
    """Returns the largest number that `pattern` captures in a key, -1 without a match.

    Gaps in the numbering are reported later, as missing tensors.
    """
    matches = (re.fullmatch(pattern, key) for key in state)
    return max((int(match[1]) for match in matches if match), default=-1)


# NVlabs -------------------------------------------------------------------------------

NVLABS_KERNEL = r".*\.resample_filter"
NVLABS_KERNEL_SUM = 1


def _prepare_nvlabs(state: StateDict, note: Note) -> StateDict:
    _check_kernels(state, NVLABS_KERNEL, NVLABS_KERNEL_SUM)
    return state


def _nvlabs_config(state: StateDict) -> dict:
    resolution = _largest_index(state, r"synthesis\.b(\d+)\..*")
    blocks = [4 << i for i in range(max(resolution.bit_length() - 2, 1))]
    return {
        "resolution": blocks[-1],
        "channels": tuple(
            size(state, f"synthesis.b{block}.conv1.weight", 0) for block in blocks
        ),
        "z_dim": size(state, "mapping.fc0.weight", 1),
        "w_dim": size(state, "mapping.fc0.weight", 0),
        "mapping_layers": _largest_index(state, r"mapping\.fc(\d+)\..*") + 1,
    }


NVLABS = Family(
    kind="stylegan2",
    title="StyleGAN2, stylegan2-ada-pytorch (NVlabs)",
    recognises=lambda state: "synthesis.b4.const" in state,
    config=_nvlabs_config,
    rules=(
        Rule(NVLABS_KERNEL, None),
        Rule(r"(mapping\.fc\d+\.weight|.*\.affine\.weight)", r"\1", "linear"),
        Rule(r"(synthesis\.b4\.const)", r"\1", "image"),
        Rule(r"(synthesis\.b\d+\.(?:conv\d|torgb)\.weight)", r"\1", "conv"),
        Rule(r"((?:mapping|synthesis)\..*)", r"\1"),
    ),
    prepare=_prepare_nvlabs,
    causes=[conditional, other_architecture, not_rgb("synthesis.b4.torgb.weight", 0)],
    drawn=NOISE,
)


def nvlabs_block_shapes(
    block: str, inputs: int | None, outputs: int, side: int, w_dim: int, image: int = 3
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the key and shape of a block's tensors, in the order of `state_dict()`.

    Args:
        block: the block's name.
        inputs: channels of the previous block; None for the first block.
        outputs: channels of this block.
        side: its resolution, in pixels.
        w_dim: length of a style vector.
        image: channels of the image.
    """
    if inputs is None:
        yield f"{block}.const", (outputs, side, side)
    yield f"{block}.resample_filter", (len(FIR), len(FIR))
    for conv in ("conv0", "conv1") if inputs else ("conv1",):
        fan_in = inputs if conv == "conv0" and inputs else outputs
        yield f"{block}.{conv}.weight", (outputs, fan_in, 3, 3)
        yield f"{block}.{conv}.noise_strength", ()
        yield f"{block}.{conv}.bias", (outputs,)
        yield f"{block}.{conv}.resample_filter", (len(FIR), len(FIR))
        yield f"{block}.{conv}.noise_const", (side, side)
        yield f"{block}.{conv}.affine.weight", (fan_in, w_dim)
        yield f"{block}.{conv}.affine.bias", (fan_in,)
    yield f"{block}.torgb.weight", (image, outputs, 1, 1)
    yield f"{block}.torgb.bias", (image,)
    yield f"{block}.torgb.affine.weight", (outputs, w_dim)
    yield f"{block}.torgb.affine.bias", (outputs,)


def nvlabs_channels(channels: Sequence[int]) -> tuple[int, int, str]:
    """Returns the channel arguments of NVlabs' classes for channels at 4, 8, ... px.

    The classes have min(channel_base // side, channel_max) channels.

    Returns:
        `channel_base`, `channel_max`, and what else to set if no arguments fit.
    """
    by_side = {4 << i: count for i, count in enumerate(channels)}
    maximum = max(channels)
    # This base fits if any does.
    base = max(count * side for side, count in by_side.items())
    if by_side == {side: min(base // side, maximum) for side in by_side}:
        return base, maximum, ""
    return base, maximum, f", with channels_dict = {by_side} in its SynthesisNetwork"


# rosinality ---------------------------------------------------------------------------

MOST_CHANNELS = 4096
ROSINALITY_KERNEL = r".*\.(?:blur|upsample)\.kernel"
ROSINALITY_KERNEL_SUM = 4  # includes the gain of upsampling
# Layer 0, at 4 pixels, has a name without an index.
CONV = r"(?:conv1|convs\.(\d+))"
RGB = r"(?:to_rgb1|to_rgbs\.(\d+))"


def _prepare_rosinality(state: StateDict, note: Note) -> StateDict:
    """Reduces `latent_avg` to [D]; without it, computes the mean as published code."""
    _check_kernels(state, ROSINALITY_KERNEL, ROSINALITY_KERNEL_SUM)
    w_avg = state.get("latent_avg")
    if w_avg is None:
        w_avg = _mean_of_mapping(state)
        note("the file has no mean code ('latent_avg'); it was computed")
    if np.ndim(w_avg) == 2:  # [L, D], L identical rows
        w_avg = np.mean(w_avg, axis=0, dtype=np.float64)
    return {**state, "latent_avg": w_avg}


def _mean_of_mapping(state: StateDict) -> np.ndarray:
    layers = []
    while (key := f"style.{1 + len(layers)}.weight") in state:
        # Views can claim any size, of which only those of networks are computed with.
        if max(np.shape(state[key]), default=0) > MOST_CHANNELS:
            return np.zeros(0, np.float32)
        weight = np.asarray(state[key], np.float32)
        bias = np.asarray(state.get(key.replace("weight", "bias"), 0.0), np.float32)
        gain = MAPPING_LR_MULTIPLIER / math.sqrt(size(state, key, 1))
        layers.append((weight * gain, bias * MAPPING_LR_MULTIPLIER))
    try:
        return mean_w(layers)
    except (ValueError, IndexError):  # `config` and the rules report the bad tensors
        return np.zeros(0, np.float32)


def _rosinality_config(state: StateDict) -> dict:
    blocks = 2 + _largest_index(state, r"to_rgbs\.(\d+)\..*")
    last_convs = ["conv1"] + [f"convs.{2 * i + 1}" for i in range(blocks - 1)]
    return {
        "resolution": 2 << blocks,
        "channels": tuple(size(state, f"{name}.conv.weight", 1) for name in last_convs),
        "z_dim": size(state, "style.1.weight", 1),
        "w_dim": size(state, "conv1.conv.modulation.weight", 1),
        "mapping_layers": _largest_index(state, r"style\.(\d+)\..*"),
    }


def _conv_name(i: int) -> str:
    # b4.conv1, b8.conv0, b8.conv1, b16.conv0, ...
    return f"synthesis.b{4 << (i + 1) // 2}.conv{(i + 1) % 2}"


def _rgb_name(i: int) -> str:
    return f"synthesis.b{4 << i}.torgb"


def _path(name: Callable[[int], str], leaf: str) -> Callable[[re.Match], str]:
    """Returns a rule's path function: a leaf of the layer whose index is captured."""
    return lambda match: f"{name(int(match[1]) + 1 if match[1] else 0)}.{leaf}"


def _kernel(array: np.ndarray) -> np.ndarray:
    """Converts [1, O, I, k, k] to HWIO."""
    return array.reshape(array.shape[-4:]).transpose(2, 3, 1, 0)


ROSINALITY = Family(
    kind="stylegan2",
    title="StyleGAN2, rosinality's names (e4e decoder)",
    recognises=lambda state: "input.input" in state,
    config=_rosinality_config,
    rules=(
        Rule(ROSINALITY_KERNEL, None),
        Rule(
            r"style\.(\d+)\.(weight|bias)",
            lambda match: f"mapping.fc{int(match[1]) - 1}.{match[2]}",
            np.transpose,
        ),
        Rule(r"latent_avg", "mapping.w_avg"),
        Rule(r"input\.input", "synthesis.b4.const", "image"),
        Rule(CONV + r"\.conv\.weight", _path(_conv_name, "weight"), _kernel),
        Rule(CONV + r"\.noise\.weight", _path(_conv_name, "noise_strength"), "scalar"),
        Rule(CONV + r"\.activate\.bias", _path(_conv_name, "bias")),
        Rule(
            CONV + r"\.conv\.modulation\.weight",
            _path(_conv_name, "affine.weight"),
            "linear",
        ),
        Rule(CONV + r"\.conv\.modulation\.bias", _path(_conv_name, "affine.bias")),
        Rule(RGB + r"\.conv\.weight", _path(_rgb_name, "weight"), _kernel),
        Rule(RGB + r"\.bias", _path(_rgb_name, "bias"), "flat"),
        Rule(
            RGB + r"\.conv\.modulation\.weight",
            _path(_rgb_name, "affine.weight"),
            "linear",
        ),
        Rule(RGB + r"\.conv\.modulation\.bias", _path(_rgb_name, "affine.bias")),
        Rule(
            r"noises\.noise_(\d+)",
            lambda match: f"{_conv_name(int(match[1]))}.noise_const",
            "plane",
        ),
    ),
    prepare=_prepare_rosinality,
    beside=["latent_avg"],
    causes=[not_rgb("to_rgb1.conv.weight", 1)],
    drawn=NOISE,
)
