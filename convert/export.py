"""Exports a StyleGAN2 or an EG3D to PyTorch, with published tensor names.

    python -m convert --export runs/demo/generator --to generator.npz

`Names.shapes` lists the tensors of a published state dict; everything else follows from
the rules that `convert` uses for such files. A rule's layout only permutes elements, so
applying it to 0, 1, 2, ... gives the permutation to invert, and no second table has to
be kept in sync.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from flax import nnx

from convert import eg3d
from convert.rules import ConversionError, Family, Rule
from convert.stylegan2 import (
    MAPPING_LR_MULTIPLIER,
    NVLABS,
    NVLABS_KERNEL_SUM,
    ROSINALITY,
    ROSINALITY_KERNEL_SUM,
    nvlabs_block_shapes,
    nvlabs_channels,
    smoothing_kernel,
)
from guide_jax.models.network import flat_leaves

# Configuration that a state dict does not store, and the values that readers assume.
ASSUMED = {"mapping_lr_multiplier": MAPPING_LR_MULTIPLIER, "conv_clamp": None}
KERNEL = (4, 4)
Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Names:
    """A published naming scheme to export to.

    Attributes:
        family: how such files are read; the export inverts its rules.
        shapes: yields the key and shape of every tensor for a config, in the order of
            PyTorch's `state_dict()`.
        kernel_sum: sum of each smoothing kernel (the tensors that the rules ignore).
        call: returns the call of the published class that fits a config.
        check: raises ConversionError for a config that such a file cannot store.
    """

    family: Family
    shapes: Callable[[dict], Shapes]
    kernel_sum: float
    call: Callable[[dict], str]
    check: Callable[[dict], None]


def export(network: nnx.Module, names: str) -> dict[str, np.ndarray]:
    """Returns a generator as a published state dict, bit-exactly.

    Args:
        network: a network of kind "stylegan2" or "eg3d".
        names: "nvlabs" or "rosinality" for a StyleGAN2, "eg3d" for an EG3D.

    Returns:
        key -> float32 array, in the order of PyTorch's `state_dict()`. With
        rosinality's names, the last entry is "latent_avg" `[D]`. Smoothing kernels sum
        to 4 for rosinality and to 1 for NVlabs.

    Raises:
        ConversionError: the network is of another kind, or has settings that such a
            file cannot store.
    """
    target = names_for(names)
    if network.kind != target.family.kind:
        raise ConversionError(
            f"cannot export a {network.kind} network; only {target.family.kind} has"
            " these tensor names"
        )
    config = network.config
    target.check(config)
    leaves = {path: np.asarray(leaf) for path, leaf in flat_leaves(network).items()}
    state, unused, faults = {}, set(leaves), []
    for key, shape in target.shapes(config):
        rule, match = target.family.rule_of(key)
        path = rule and rule.target(match)
        if rule and path is None:
            state[key] = smoothing_kernel(target.kernel_sum).astype(np.float32)
        elif path in unused:
            unused.remove(path)
            if (array := _invert_layout(leaves[path], rule, shape)) is None:
                faults.append(f"{path} cannot be converted to {key!r} {list(shape)}")
            else:
                state[key] = array
        else:
            faults.append(f"no value for {key!r}")
    faults += [f"no tensor name for {path}" for path in leaves if path in unused]
    if faults:
        raise ConversionError(f"{target.family.title}: " + "; ".join(faults))
    return state


def call_of(network: nnx.Module, names: str) -> str:
    """Returns the call that builds the published class for an exported state dict."""
    return names_for(names).call(network.config)


def names_of(network: nnx.Module) -> str:
    """Returns the names that `export` uses for a network unless told otherwise."""
    return "eg3d" if network.kind == eg3d.EG3D.kind else "nvlabs"


def _check_assumed(config: dict) -> None:
    """Raises unless a reader of the file would infer the same config."""
    for field, assumed in ASSUMED.items():
        if config[field] != assumed:
            raise ConversionError(
                f"{field} is {config[field]}, which a state dict cannot store; readers"
                f" assume {assumed}"
            )


def _check_rosinality(config: dict) -> None:
    _check_assumed(config)
    if config["z_dim"] != config["w_dim"]:
        raise ConversionError(
            f"z has length {config['z_dim']} and w has length {config['w_dim']}, but"
            " rosinality's generator needs equal lengths; use --names nvlabs"
        )


def _invert_layout(
    leaf: np.ndarray, rule: Rule, shape: tuple[int, ...]
) -> np.ndarray | None:
    """Returns the array of `shape` that the rule's layout maps to `leaf`, or None."""
    try:
        source = rule.arrange(np.arange(leaf.size).reshape(shape))
        array = np.empty(leaf.size, np.float32)
        array[source.reshape(-1)] = leaf.reshape(-1)
        array = array.reshape(shape)
    except (ValueError, IndexError):
        return None
    same = np.array_equal(rule.arrange(array), leaf, equal_nan=True)
    return array if same else None


# NVlabs -------------------------------------------------------------------------------


def _nvlabs_shapes(config: dict) -> Shapes:
    w_dim = config["w_dim"]
    previous = None  # channels of the previous block
    for i, channels in enumerate(config["channels"]):
        block, side = f"synthesis.b{4 << i}", 4 << i
        yield from nvlabs_block_shapes(block, previous, channels, side, w_dim)
        previous = channels
    yield "mapping.w_avg", (w_dim,)
    for i in range(config["mapping_layers"]):
        yield f"mapping.fc{i}.weight", (w_dim, w_dim if i else config["z_dim"])
        yield f"mapping.fc{i}.bias", (w_dim,)


def _nvlabs_call(config: dict) -> str:
    base, maximum, rest = nvlabs_channels(config["channels"])
    return (
        f"training.networks.Generator(z_dim={config['z_dim']}, c_dim=0,"
        f" w_dim={config['w_dim']}, img_resolution={config['resolution']},"
        f" img_channels=3, mapping_kwargs={{'num_layers': {config['mapping_layers']}}},"
        f" synthesis_kwargs={{'channel_base': {base}, 'channel_max': {maximum}}})"
        f"{rest}"
    )


# rosinality ---------------------------------------------------------------------------


def _rosinality_shapes(config: dict) -> Shapes:
    w_dim, channels = config["w_dim"], config["channels"]
    for i in range(config["mapping_layers"]):
        yield f"style.{i + 1}.weight", (w_dim, w_dim if i else config["z_dim"])
        yield f"style.{i + 1}.bias", (w_dim,)
    yield "input.input", (1, channels[0], 4, 4)
    yield from _styled_conv("conv1", channels[0], channels[0], w_dim)
    yield from _to_rgb("to_rgb1", channels[0], w_dim)
    for i, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
        yield from _styled_conv(f"convs.{2 * i}", inputs, outputs, w_dim, up=True)
        yield from _styled_conv(f"convs.{2 * i + 1}", outputs, outputs, w_dim)
    for i, inputs in enumerate(channels[1:]):
        yield from _to_rgb(f"to_rgbs.{i}", inputs, w_dim, up=True)
    for i in range(2 * len(channels) - 1):
        side = 4 << (i + 1) // 2
        yield f"noises.noise_{i}", (1, 1, side, side)
    yield "latent_avg", (w_dim,)


def _styled_conv(
    layer: str, inputs: int, outputs: int, w_dim: int, up: bool = False
) -> Shapes:
    yield f"{layer}.conv.weight", (1, outputs, inputs, 3, 3)
    if up:
        yield f"{layer}.conv.blur.kernel", KERNEL
    yield f"{layer}.conv.modulation.weight", (inputs, w_dim)
    yield f"{layer}.conv.modulation.bias", (inputs,)
    yield f"{layer}.noise.weight", (1,)
    yield f"{layer}.activate.bias", (outputs,)


def _to_rgb(layer: str, inputs: int, w_dim: int, up: bool = False) -> Shapes:
    yield f"{layer}.bias", (1, 3, 1, 1)
    if up:
        yield f"{layer}.upsample.kernel", KERNEL
    yield f"{layer}.conv.weight", (1, 3, inputs, 1, 1)
    yield f"{layer}.conv.modulation.weight", (inputs, w_dim)
    yield f"{layer}.conv.modulation.bias", (inputs,)


def _rosinality_call(config: dict) -> str:
    channels = _by_side(config)
    # The class has 512 channels up to 32 pixels, then 256, 128, ... times a multiplier.
    multiplier = max(channels.get(64, 512) // 256, 1)
    call = (
        f"Generator({config['resolution']}, {config['w_dim']},"
        f" {config['mapping_layers']}, channel_multiplier={multiplier})"
    )
    default = {s: 512 if s < 64 else 256 * 64 // s * multiplier for s in channels}
    return call if channels == default else f"{call}, with self.channels = {channels}"


def _by_side(config: dict) -> dict[int, int]:
    """Returns image side in pixels -> channels."""
    return {4 << i: count for i, count in enumerate(config["channels"])}


# What a StyleGAN2 can be exported to.
NAMES = {
    "nvlabs": Names(
        NVLABS, _nvlabs_shapes, NVLABS_KERNEL_SUM, _nvlabs_call, _check_assumed
    ),
    "rosinality": Names(
        ROSINALITY,
        _rosinality_shapes,
        ROSINALITY_KERNEL_SUM,
        _rosinality_call,
        _check_rosinality,
    ),
}
EG3D_NAMES = Names(eg3d.EG3D, eg3d.shapes, NVLABS_KERNEL_SUM, eg3d.call, eg3d.check)


def names_for(key: str) -> Names:
    """Returns the naming scheme "nvlabs", "rosinality" or "eg3d"."""
    return EG3D_NAMES if key == "eg3d" else NAMES[key]
