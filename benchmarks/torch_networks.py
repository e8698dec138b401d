"""The networks of an unlearning step in PyTorch, as their authors describe them.

StyleGAN2's synthesis with per-example kernels and grouped convolutions, LPIPS on VGG16,
and IR-SE50 with the identity loss's crop; float32, NCHW. They are functions of our
networks' leaves, so both sides compute the same values. FIR filters are depthwise
convolutions and activations are plain PyTorch, which is the published code's fallback
when its CUDA kernels are not built.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from flax import nnx

from guide_jax.models.arcface import IRNet
from guide_jax.models.lpips import LPIPS, NETS, SCALE, SHIFT
from guide_jax.models.network import flat_leaves
from guide_jax.models.stylegan2 import Synthesis

Tensors = dict[str, torch.Tensor]


def tensors(network: nnx.Module, device: str) -> Tensors:
    """Returns a network's leaves by dotted path, in PyTorch's layouts.

    Kernels [k, k, I, O] become [O, I, k, k], matrices [I, O] become [O, I], a constant
    image [H, W, C] becomes [1, C, H, W].
    """
    axes = {4: (3, 2, 0, 1), 3: (2, 0, 1), 2: (1, 0)}
    result = {}
    for path, leaf in flat_leaves(network).items():
        leaf = np.asarray(leaf)
        if leaf.ndim in axes and not path.endswith("noise_const"):
            leaf = leaf.transpose(axes[leaf.ndim])
        if path.endswith("const") and leaf.ndim == 3:
            leaf = leaf[None]
        result[path] = torch.tensor(np.ascontiguousarray(leaf), device=device)
    return result


# StyleGAN2


def fir_filter(x: torch.Tensor, pad: tuple[int, int], gain: float) -> torch.Tensor:
    """Pads [N, C, H, W] and smooths it with [1, 3, 3, 1] along both axes."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device) / 8
    kernel = (taps[:, None] * taps * gain).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, (*pad, *pad)), kernel, groups=x.shape[1])


def upsample(x: torch.Tensor) -> torch.Tensor:
    """Doubles the size of [N, C, H, W]: inserts zeros between pixels, then filters."""
    N, C, H, W = x.shape
    x = F.pad(x[:, :, :, None, :, None], (0, 1, 0, 0, 0, 1))
    return fir_filter(x.reshape(N, C, 2 * H, 2 * W), (2, 1), 4.0)


def modulated_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    style: torch.Tensor,
    *,
    up: bool = False,
    demodulate: bool = True,
) -> torch.Tensor:
    """Convolves each example with its own kernel, as groups of one convolution.

    Args:
        x: [N, I, H, W].
        weight: [O, I, k, k].
        style: [N, I].
        up: whether to double the size.
        demodulate: whether to scale each output channel's kernel to norm 1.
    """
    (N, I, H, W), (O, _, k, _) = x.shape, weight.shape  # noqa: E741
    kernels = weight * style[:, None, :, None, None]  # [N, O, I, k, k]
    if demodulate:
        energy = kernels.square().sum((2, 3, 4), keepdim=True)
        kernels = kernels * (energy + 1e-8).rsqrt()
    x = x.reshape(1, N * I, H, W)
    if up:
        kernels = kernels.transpose(1, 2).reshape(N * I, O, k, k)
        x = F.conv_transpose2d(x, kernels, stride=2, groups=N)
        x = fir_filter(x, (1, 1), 4.0)
    else:
        kernels = kernels.reshape(N * O, I, k, k)
        x = F.conv2d(x, kernels, padding=k // 2, groups=N)
    return x.reshape(N, O, *x.shape[2:])


def dense(x: torch.Tensor, p: Tensors, name: str) -> torch.Tensor:
    """Applies the equalised dense layer that maps a code to a style."""
    weight = p[f"{name}.weight"]
    return F.linear(x, weight / math.sqrt(weight.shape[1]), p[f"{name}.bias"])


def synthesis_layer(p: Tensors, name: str, x: torch.Tensor, w: torch.Tensor, up: bool):
    """Applies a modulated convolution, its noise, bias and activation."""
    style = dense(w, p, f"{name}.affine")
    x = modulated_conv(x, p[f"{name}.weight"], style, up=up)
    x = x + p[f"{name}.noise_const"] * p[f"{name}.noise_strength"]
    x = x + p[f"{name}.bias"][:, None, None]
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def synthesis(p: Tensors, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Synthesises images from codes.

    Args:
        p: leaves of a `Synthesis` without `conv_clamp`.
        w: codes [N, L, D].

    Returns:
        Images [N, 3, H, W], and the activations that the last toRGB layer reads.
    """
    x = image = None
    for i in range(w.shape[1] // 2):
        block = f"b{4 << i}"
        if i == 0:
            x = p["b4.const"].expand(w.shape[0], -1, -1, -1)
        else:
            x = synthesis_layer(p, f"{block}.conv0", x, w[:, 2 * i - 1], True)
        x = synthesis_layer(p, f"{block}.conv1", x, w[:, 2 * i], False)
        style = dense(w[:, 2 * i + 1], p, f"{block}.torgb.affine")
        weight = p[f"{block}.torgb.weight"]
        style = style / math.sqrt(weight.shape[1])
        rgb = modulated_conv(x, weight, style, demodulate=False)
        rgb = rgb + p[f"{block}.torgb.bias"][:, None, None]
        image = rgb if image is None else upsample(image) + rgb
    return image, x


# Loss networks


class Perceptual:
    """LPIPS v0.1 on VGG16."""

    def __init__(self, network: LPIPS, device: str):
        if network.net != "vgg":
            raise ValueError(f"the PyTorch LPIPS supports 'vgg', not {network.net!r}")
        self._p = tensors(network, device)
        self._shift, self._scale = (
            torch.tensor(x, device=device)[:, None, None] for x in (SHIFT, SCALE)
        )

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Returns five feature maps, normalised to unit length at each pixel."""
        x, maps = (images - self._shift) / self._scale, []
        for i, layer in enumerate(NETS["vgg"]):
            if layer.pool:
                x = F.max_pool2d(x, 2, 2)
            weight, bias = (self._p[f"convs.{i}.{n}"] for n in ("kernel", "bias"))
            x = F.relu(F.conv2d(x, weight, bias, padding=1))
            if layer.tap:
                length = x.square().sum(1, keepdim=True).sqrt()
                maps.append(x / (length + 1e-10))
        return maps

    def distance(self, mine: list, theirs: list) -> torch.Tensor:
        """Returns the distances [N] between two results of `features`."""
        total = 0
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            head = self._p[f"heads.{i}"][None, :, None, None]
            total = total + F.conv2d((a - b).square(), head).mean((1, 2, 3))
        return total


class Identity:
    """An IR-SE encoder on the crop of the published identity loss."""

    def __init__(self, network: IRNet, device: str):
        self._p = p = tensors(network, device)
        self._strides = [block.stride for block in network.blocks]
        self._size = network.input_size
        # The last layer reads flattened [H, W, C] in ours, [C, H, W] in PyTorch.
        weight, channels = p["head.linear.kernel"], p["head.norm1.bias"].shape[0]
        side = math.isqrt(weight.shape[1] // channels)
        weight = weight.reshape(-1, side, side, channels).permute(0, 3, 1, 2)
        p["head.linear.kernel"] = weight.flatten(1).contiguous()

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images [N, 3, H, W] to unit vectors [N, E]."""
        x = F.interpolate(images, (256, 256), mode="bilinear")
        x = F.adaptive_avg_pool2d(x[:, :, 35:223, 32:220], self._size)
        x = self._conv(x, "stem.conv")
        x = self._prelu(self._norm(x, "stem.norm"), "stem.act")
        for i, stride in enumerate(self._strides):
            x = self._block(x, f"blocks.{i}", stride)
        x = self._norm(x, "head.norm1").flatten(1)
        x = F.linear(x, self._p["head.linear.kernel"], self._p["head.linear.bias"])
        return F.normalize(self._norm(x, "head.norm2"))

    def _block(self, x: torch.Tensor, name: str, stride: int) -> torch.Tensor:
        p = self._p
        if f"{name}.shortcut_conv.kernel" in p:
            shortcut = self._conv(x, f"{name}.shortcut_conv", stride)
            shortcut = self._norm(shortcut, f"{name}.shortcut_norm")
        else:
            shortcut = F.max_pool2d(x, 1, stride)
        x = self._conv(self._norm(x, f"{name}.norm1"), f"{name}.conv1")
        x = self._conv(self._prelu(x, f"{name}.act"), f"{name}.conv2", stride)
        x = self._norm(x, f"{name}.norm2")
        if f"{name}.se.squeeze.kernel" in p:
            gate = F.adaptive_avg_pool2d(x, 1)
            gate = F.relu(
                F.conv2d(gate, p[f"{name}.se.squeeze.kernel"][..., None, None])
            )
            gate = F.conv2d(gate, p[f"{name}.se.excite.kernel"][..., None, None])
            x = x * gate.sigmoid()
        return x + shortcut

    def _conv(self, x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = self._p[f"{name}.kernel"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        p = (self._p.get(f"{name}.{leaf}") for leaf in ("mean", "var", "scale", "bias"))
        return F.batch_norm(x, *p, eps=1e-5)

    def _prelu(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.prelu(x, self._p[f"{name}.slope"])


def check_plain(network: Synthesis) -> None:
    """Raises ValueError if `synthesis` cannot reproduce the network."""
    if network.b4.conv1.conv_clamp is not None:
        raise ValueError("the PyTorch synthesis does not support conv_clamp")
