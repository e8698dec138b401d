"""Writes this folder's sample checkpoints with PyTorch itself.

    pip install torch==2.13.0 numpy && python tests/data/make_samples.py

Each file's expected contents are stored next to it, in an `.npz` with dotted names. All
values are random; the networks are far too small to generate images.
"""

import argparse
import collections
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
W, C4, C8 = 8, 8, 4  # w_dim, channels at 4 and 8 pixels
FIR = torch.outer(t := torch.tensor([1.0, 3.0, 3.0, 1.0]), t) / 64


def main():
    """Writes all files."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4), torch.nn.PReLU(4)
    )
    save_both("layers", layers.state_dict(), ".pth")
    save_both("mixed", mixed(), ".pt")
    save_rosinality()
    save_nvlabs()


def save_both(name, data, suffix):
    """Saves in the zip format and, as `<name>_legacy`, in the legacy format."""
    torch.save(data, HERE / (name + suffix))
    torch.save(
        data, HERE / f"{name}_legacy{suffix}", _use_new_zipfile_serialization=False
    )
    expect(name, data)


def expect(name, data):
    """Writes every tensor in nested data to `<name>.npz`."""
    flat = {}

    def walk(prefix, item):
        if isinstance(item, argparse.Namespace):
            item = vars(item)
        if isinstance(item, dict):
            for key, value in item.items():
                walk(f"{prefix}.{key}" if prefix else key, value)
        elif isinstance(item, torch.Tensor):
            item = item.detach()
            item = item.float() if item.dtype == torch.bfloat16 else item
            flat[prefix] = item.numpy()

    walk("", data)
    np.savez_compressed(HERE / f"{name}.npz", **flat)


def mixed():
    """Returns every kind of tensor and plain object that a checkpoint may hold."""
    base = torch.arange(24.0).reshape(4, 6)
    dtypes = "float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64"
    values = torch.tensor([-3, 0, 1, 100])
    return {
        "shared": {
            "base": base,
            "part": base[1:3, 1::2],
            "transposed": base.t(),
            "expanded": base[2, 3].expand(2, 2),
        },
        "dtypes": {
            name: values.to(getattr(torch, name))
            for name in [*dtypes.split(), "uint16"]
        },
        "fractions": (values / 7).to(torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "opts": argparse.Namespace(
            lr=0.1, names=["a", "b"], nested=argparse.Namespace(w=torch.ones(2))
        ),
        "ordered": collections.OrderedDict(a=1, b=None),
        "size": base.shape,
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "seen": {1, 2},
        "pair": (True, 2**70),
        "numpy": np.arange(6, dtype=np.int16).reshape(2, 3),
        "numpy_scalar": np.float64(0.1),
    }


def tensors(shapes):
    """Returns name -> random float32 tensor."""
    return {
        name: torch.randn(shape) if isinstance(shape, tuple) else shape.clone()
        for name, shape in shapes.items()
    }


def save_rosinality():
    """Writes an 8 px generator in the format of rosinality's training code."""
    shapes = {}
    for i in (1, 2):
        shapes |= {f"style.{i}.weight": (W, W), f"style.{i}.bias": (W,)}
    shapes["input.input"] = (1, C4, 4, 4)

    def layer(name, inputs, outputs, kernel, up=False):
        rgb = name.startswith("to_rgb")
        if rgb:
            shapes[f"{name}.bias"] = (1, outputs, 1, 1)
            if up:
                shapes[f"{name}.upsample.kernel"] = FIR * 4
        shapes[f"{name}.conv.weight"] = (1, outputs, inputs, kernel, kernel)
        if up and not rgb:
            shapes[f"{name}.conv.blur.kernel"] = FIR * 4
        shapes[f"{name}.conv.modulation.weight"] = (inputs, W)
        shapes[f"{name}.conv.modulation.bias"] = (inputs,)
        if not rgb:
            shapes[f"{name}.noise.weight"] = (1,)
            shapes[f"{name}.activate.bias"] = (outputs,)

    layer("conv1", C4, C4, 3)
    layer("to_rgb1", C4, 3, 1)
    layer("convs.0", C4, C8, 3, up=True)
    layer("convs.1", C8, C8, 3)
    layer("to_rgbs.0", C8, 3, 1, up=True)
    for i, side in enumerate((4, 8, 8)):
        shapes[f"noises.noise_{i}"] = (1, 1, side, side)
    state = {"g_ema": tensors(shapes), "latent_avg": torch.randn(W)}
    torch.save(state, HERE / "rosinality.pt")
    expect("rosinality", state)


class Net(torch.nn.Module):
    """A module that pickles like NVIDIA's persistent classes."""

    def __init__(self, **attributes):
        super().__init__()
        self.__dict__ |= attributes

    def __reduce__(self):
        """Returns the reconstruction function and its arguments: source and state."""
        meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit('the embedded source was executed')\n",
            "class_name": "Net",
            "state": self.__dict__,
        }
        return reconstruct, (meta,), None


class EasyDict(dict):
    """A dict subclass, like NVIDIA's settings."""


def reconstruct(meta):
    """Stand-in for NVIDIA's reconstruction function; never called."""
    raise NotImplementedError


def pickle_as(item, module, name):
    """Makes a class or function pickle as if defined in another module."""
    item.__module__, item.__qualname__, item.__name__ = module, name, name
    sys.modules.setdefault(module.split(".")[0], types.ModuleType(module))
    home = sys.modules.setdefault(module, types.ModuleType(module))
    setattr(home, name, item)


def tree(state, buffers):
    """Returns nested `Net` modules with `state` as their state dict."""
    root = Net(
        _init_kwargs=EasyDict(z_dim=W, synthesis_kwargs=EasyDict(channel_max=C4)),
        weight_gain=1 / np.sqrt(np.float64(W)),
        output=None,
    )
    for name, value in state.items():
        *path, leaf = name.split(".")
        node = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, Net())
            node = node._modules[part]
        if leaf in buffers:
            node.register_buffer(leaf, value)
        else:
            node.register_parameter(leaf, torch.nn.Parameter(value))
    return root


def save_nvlabs():
    """Writes an 8 px generator in the format of NVIDIA's stylegan2-ada-pytorch."""
    pickle_as(reconstruct, "torch_utils.persistence", "_reconstruct_persistent_obj")
    pickle_as(EasyDict, "dnnlib.util", "EasyDict")
    shapes = {}

    def layer(name, inputs, outputs, side):
        shapes[f"{name}.weight"] = (outputs, inputs, 3, 3)
        shapes[f"{name}.noise_strength"] = ()
        shapes[f"{name}.bias"] = (outputs,)
        shapes[f"{name}.resample_filter"] = FIR
        shapes[f"{name}.noise_const"] = (side, side)
        shapes[f"{name}.affine.weight"] = (inputs, W)
        shapes[f"{name}.affine.bias"] = (inputs,)

    for side, channels in ((4, C4), (8, C8)):
        block = f"synthesis.b{side}"
        if side == 4:
            shapes[f"{block}.const"] = (C4, 4, 4)
        else:
            layer(f"{block}.conv0", C4, channels, side)
        shapes[f"{block}.resample_filter"] = FIR
        layer(f"{block}.conv1", channels, channels, side)
        shapes[f"{block}.torgb.weight"] = (3, channels, 1, 1)
        shapes[f"{block}.torgb.bias"] = (3,)
        shapes[f"{block}.torgb.affine.weight"] = (channels, W)
        shapes[f"{block}.torgb.affine.bias"] = (channels,)
    shapes["mapping.w_avg"] = (W,)
    for i in (0, 1):
        shapes |= {f"mapping.fc{i}.weight": (W, W), f"mapping.fc{i}.bias": (W,)}
    state = tensors(shapes)
    buffers = ("resample_filter", "noise_const", "w_avg")
    snapshot = {
        "training_set_kwargs": EasyDict(path="ffhq.zip", max_size=70000),
        "G": tree(tensors({"weight": (2, 2)}), ()),
        "D": tree(tensors({"weight": (2, 2)}), ()),
        "G_ema": tree(state, buffers),
        "augment_pipe": None,
    }
    with (HERE / "nvlabs.pkl").open("wb") as file:
        pickle.dump(snapshot, file)
    expect("nvlabs", state)


if __name__ == "__main__":
    main()
