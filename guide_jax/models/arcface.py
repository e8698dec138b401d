"""Identity encoders: the IR and IR-SE residual networks used by ArcFace.

One class covers IR-SE50 (`model_ir_se50.pth`), CurricularFace's IR-101 and narrower
networks trained from scratch.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from guide_jax.models.ops import channelwise
from guide_jax.models.resample import identity_crop
from guide_jax.models.shapes import Array

IR50_UNITS = (3, 4, 14, 3)  # (3, 13, 30, 3) for IR-100, (3, 8, 36, 3) for IR-152

SE_REDUCTION = 16


class PReLU(nnx.Module):
    """ReLU with a trained slope per channel for negative values."""

    def __init__(self, channels: int):
        self.slope = nnx.Param(jnp.full((channels,), 0.25))

    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        """Maps [..., C] to [..., C]."""
        return jnp.where(x > 0, x, channelwise(self.slope[...], x) * x)


class SqueezeExcite(nnx.Module):
    """Scales each channel by a gate computed from all channels' means."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        hidden = max(1, channels // SE_REDUCTION)
        self.squeeze = nnx.Linear(channels, hidden, use_bias=False, rngs=rngs)
        self.excite = nnx.Linear(hidden, channels, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Maps [N, H, W, C] to [N, H, W, C]."""
        gate = self.squeeze(x.mean((1, 2)))  # [N, C / 16]
        gate = jax.nn.sigmoid(self.excite(jax.nn.relu(gate)))  # [N, C]
        return x * gate[:, None, None, :]


class Stem(nnx.Module):
    """The first convolution, at full resolution, with batch norm and PReLU."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = _conv(3, channels, 3, rngs=rngs)
        self.norm = _norm(channels, rngs=rngs)
        self.act = PReLU(channels)

    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N H W C"]:
        """Maps [N, H, W, 3] to [N, H, W, C]."""
        return self.act(self.norm(self.conv(x)))


class Block(nnx.Module):
    """A residual unit; stride 2 halves the resolution, rounding up."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, se: bool, *, rngs: nnx.Rngs
    ):
        self.stride = stride
        self.norm1 = _norm(inputs, rngs=rngs)
        self.conv1 = _conv(inputs, outputs, 3, rngs=rngs)
        self.act = PReLU(outputs)
        self.conv2 = _conv(outputs, outputs, 3, stride, rngs=rngs)
        self.norm2 = _norm(outputs, rngs=rngs)
        if se:
            self.se = SqueezeExcite(outputs, rngs=rngs)
        if inputs != outputs:
            self.shortcut_conv = _conv(inputs, outputs, 1, stride, rngs=rngs)
            self.shortcut_norm = _norm(outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N h w O"]:
        """Maps [N, H, W, inputs] to [N, H / stride, W / stride, outputs]."""
        if hasattr(self, "shortcut_conv"):
            shortcut = self.shortcut_norm(self.shortcut_conv(x))
        else:
            shortcut = x[:, :: self.stride, :: self.stride]
        x = self.conv1(self.norm1(x))
        x = self.norm2(self.conv2(self.act(x)))
        if hasattr(self, "se"):
            x = self.se(x)
        return x + shortcut


def residual_blocks(
    units: Sequence[int], widths: Sequence[int], se: bool, *, rngs: nnx.Rngs
) -> nnx.List:
    """Returns the `Block`s of all stages; the first of each halves the resolution.

    Args:
        units: residual units per stage.
        widths: channels of the stem, then of each stage.
        se: whether units end in squeeze-and-excitation.
        rngs: source of the initial weights.

    Raises:
        ValueError: the number of widths is not the number of stages plus one.
    """
    if len(widths) != len(units) + 1:
        raise ValueError(
            f"{len(units)} stages need {len(units) + 1} widths (the stem's first),"
            f" got {len(widths)}"
        )
    blocks, inputs = [], widths[0]
    for count, outputs in zip(units, widths[1:], strict=True):
        for i in range(count):
            blocks.append(Block(inputs, outputs, 2 if i == 0 else 1, se, rngs=rngs))
            inputs = outputs
    return nnx.List(blocks)


class Head(nnx.Module):
    """Maps the last feature map to an embedding, not yet normalised."""

    def __init__(
        self, channels: int, size: int, dim: int, affine: bool, *, rngs: nnx.Rngs
    ):
        self.norm1 = _norm(channels, rngs=rngs)
        self.linear = nnx.Linear(size * size * channels, dim, rngs=rngs)
        self.norm2 = _norm(dim, affine, rngs=rngs)

    def __call__(self, x: Float[Array, "N S S C"]) -> Float[Array, "N E"]:
        """Maps [N, size, size, C] to [N, E]."""
        x = self.norm1(x)
        return self.norm2(self.linear(x.reshape(x.shape[0], -1)))


class IRNet(nnx.Module):
    """An IR or IR-SE identity encoder.

    It is built in eval mode: batch norms use their stored statistics. After `train()`,
    they use the batch's statistics and update the stored ones. Inside
    `jax.value_and_grad`, merge with `nnx.merge(graph, params, stats, copy=True)` (flax
    refuses the update without the copy) and return `nnx.state(network, nnx.BatchStat)`
    as aux to keep the statistics. `eval()` restores eval mode.

    Attributes:
        config: the constructor's arguments; JSON types, except for tuples.
    """

    kind = "ir"

    def __init__(
        self,
        units: Sequence[int] = IR50_UNITS,
        widths: Sequence[int] = (64, 64, 128, 256, 512),
        se: bool = True,
        embedding_dim: int = 512,
        input_size: int = 112,
        head_affine: bool = True,
        *,
        rngs: nnx.Rngs,
    ):
        """Builds the network with random weights.

        Args:
            units: residual units per stage; each stage halves the resolution.
            widths: channels of the stem, then of each stage.
            se: whether units end in squeeze-and-excitation.
            embedding_dim: E.
            input_size: side of the square crops, in pixels.
            head_affine: whether the last batch norm has a scale and a bias
                (CurricularFace's has neither).
            rngs: source of the initial weights (its `params` stream).

        Raises:
            ValueError: the number of widths is not the number of stages plus one.
        """
        self.units, self.widths = tuple(units), tuple(widths)
        self.use_se = se
        self.embedding_dim, self.input_size = embedding_dim, input_size
        self.head_affine = head_affine
        self.stem = Stem(widths[0], rngs=rngs)
        self.blocks = residual_blocks(units, widths, se, rngs=rngs)
        size = -(-input_size // 2 ** len(units))  # each stage rounds up
        self.head = Head(widths[-1], size, embedding_dim, head_affine, rngs=rngs)

    @property
    def config(self) -> dict:
        """The constructor's arguments."""
        return {
            "units": self.units,
            "widths": self.widths,
            "se": self.use_se,
            "embedding_dim": self.embedding_dim,
            "input_size": self.input_size,
            "head_affine": self.head_affine,
        }

    def __call__(self, crops: Float[Array, "N S S 3"]) -> Float[Array, "N E"]:
        """Embeds faces.

        Args:
            crops: [N, S, S, 3] in [-1, 1], S = `input_size` (see `identity_crop`).

        Returns:
            [N, E], unit length, in the dtype of the crops and the weights.

        Raises:
            ValueError: the crops are not `input_size` pixels square.
        """
        x = self.project(crops)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def project(self, crops: Float[Array, "N S S 3"]) -> Float[Array, "N E"]:
        """Returns the embedding [N, E] before normalisation; else as `__call__`."""
        if crops.shape[1:] != (self.input_size, self.input_size, 3):
            raise ValueError(
                f"unsupported crop shape {list(crops.shape)}; this encoder takes"
                f" [N, {self.input_size}, {self.input_size}, 3]"
            )
        x = self.stem(crops)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def embed(network: IRNet, images: Float[Array, "N H W 3"]) -> Float[Array, "N E"]:
    """Embeds whole aligned faces: [N, H, W, 3] in [-1, 1] to unit vectors [N, E]."""
    return network(identity_crop(images, network.input_size))


def _conv(
    inputs: int, outputs: int, size: int, stride: int = 1, *, rngs: nnx.Rngs
) -> nnx.Conv:
    kernel = (size, size)
    return nnx.Conv(
        inputs, outputs, kernel, stride, padding=size // 2, use_bias=False, rngs=rngs
    )


def _norm(channels: int, affine: bool = True, *, rngs: nnx.Rngs) -> nnx.BatchNorm:
    # Flax's momentum 0.9 is PyTorch's 0.1.
    return nnx.BatchNorm(
        channels,
        use_running_average=True,
        momentum=0.9,
        epsilon=1e-5,
        use_bias=affine,
        use_scale=affine,
        rngs=rngs,
    )
