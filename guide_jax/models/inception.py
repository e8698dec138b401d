"""The InceptionV3 of the Frechet inception distance (FID, arXiv 1706.08500).

It differs from torchvision's: average pools exclude the padding from the mean, and the
last block has a max-pool instead of an average pool. The weights
(`pt_inception-2015-12-05-6726825d.pth`) were trained that way. FIDs computed with
another network are not comparable.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from guide_jax.models.lpips import max_pool
from guide_jax.models.resample import resize
from guide_jax.models.shapes import Array

INPUT_SIZE = 299
FEATURES = 2048


class Conv(NamedTuple):
    """A convolution with batch norm and ReLU, under its published name."""

    name: str
    channels: int
    height: int = 1
    width: int = 1
    stride: int = 1
    padding: str = "SAME"


# A branch's steps run in sequence: a pool, a convolution, or several convolutions of
# the same input whose outputs are concatenated.
Step = str | Conv | tuple[Conv, ...]
Branch = tuple[Step, ...]

STEM = (
    (
        Conv("conv2d_1a_3x3", 32, 3, 3, 2, "VALID"),
        Conv("conv2d_2a_3x3", 32, 3, 3, 1, "VALID"),
        Conv("conv2d_2b_3x3", 64, 3, 3),
        "halve",
    ),
    (
        Conv("conv2d_3b_1x1", 80),
        Conv("conv2d_4a_3x3", 192, 3, 3, 1, "VALID"),
        "halve",
    ),
)


def _block_35(pooled: int) -> tuple[Branch, ...]:
    """Returns the branches of a block at 35 x 35 pixels."""
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, 5, 5)),
        (
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, 3, 3),
            Conv("branch3x3dbl_3", 96, 3, 3),
        ),
        ("average", Conv("branch_pool", pooled)),
    )


def _block_17(inner: int) -> tuple[Branch, ...]:
    """Returns the branches of a block at 17 x 17 pixels."""
    return (
        (Conv("branch1x1", 192),),
        (
            Conv("branch7x7_1", inner),
            Conv("branch7x7_2", inner, 1, 7),
            Conv("branch7x7_3", 192, 7, 1),
        ),
        (
            Conv("branch7x7dbl_1", inner),
            Conv("branch7x7dbl_2", inner, 7, 1),
            Conv("branch7x7dbl_3", inner, 1, 7),
            Conv("branch7x7dbl_4", inner, 7, 1),
            Conv("branch7x7dbl_5", 192, 1, 7),
        ),
        ("average", Conv("branch_pool", 192)),
    )


def _block_8(pool: str) -> tuple[Branch, ...]:
    """Returns the branches of a block at 8 x 8 pixels."""
    return (
        (Conv("branch1x1", 320),),
        (
            Conv("branch3x3_1", 384),
            (Conv("branch3x3_2a", 384, 1, 3), Conv("branch3x3_2b", 384, 3, 1)),
        ),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, 3, 3),
            (Conv("branch3x3dbl_3a", 384, 1, 3), Conv("branch3x3dbl_3b", 384, 3, 1)),
        ),
        (pool, Conv("branch_pool", 192)),
    )


MIXED: dict[str, tuple[Branch, ...]] = {
    "mixed_5b": _block_35(32),
    "mixed_5c": _block_35(64),
    "mixed_5d": _block_35(64),
    "mixed_6a": (
        (Conv("branch3x3", 384, 3, 3, 2, "VALID"),),
        (
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, 3, 3),
            Conv("branch3x3dbl_3", 96, 3, 3, 2, "VALID"),
        ),
        ("halve",),
    ),
    "mixed_6b": _block_17(128),
    "mixed_6c": _block_17(160),
    "mixed_6d": _block_17(160),
    "mixed_6e": _block_17(192),
    "mixed_7a": (
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, 3, 3, 2, "VALID")),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, 1, 7),
            Conv("branch7x7x3_3", 192, 7, 1),
            Conv("branch7x7x3_4", 192, 3, 3, 2, "VALID"),
        ),
        ("halve",),
    ),
    "mixed_7b": _block_8("average"),
    "mixed_7c": _block_8("maximum"),
}


class ConvNorm(nnx.Module):
    """A convolution, batch norm with the stored statistics, and ReLU."""

    def __init__(self, inputs: int, spec: Conv, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            inputs,
            spec.channels,
            (spec.height, spec.width),
            spec.stride,
            padding=spec.padding,
            use_bias=False,
            rngs=rngs,
        )
        self.bn = nnx.BatchNorm(
            spec.channels, use_running_average=True, epsilon=1e-3, rngs=rngs
        )

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N h w O"]:
        """Maps [N, H, W, inputs] to [N, h, w, channels]."""
        return jax.nn.relu(self.bn(self.conv(x)))


class Mixed(nnx.Module):
    """Branches of the same input whose outputs are concatenated."""

    def __init__(self, inputs: int, branches: tuple[Branch, ...], *, rngs: nnx.Rngs):
        self.branches = branches
        outputs = [_build(self, inputs, steps, rngs) for steps in branches]
        self.channels = sum(outputs)

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N h w O"]:
        """Maps [N, H, W, inputs] to [N, h, w, channels]."""
        return jnp.concatenate([_run(self, x, steps) for steps in self.branches], -1)


class Inception(nnx.Module):
    """The network up to FID's features, in eval mode.

    Attributes:
        config: empty; the constructor takes only `rngs`.
    """

    kind = "inception"

    def __init__(self, *, rngs: nnx.Rngs):
        """Builds the network with random weights from `rngs`' `params` stream."""
        channels = 3
        for steps in STEM:
            channels = _build(self, channels, steps, rngs)
        for name, branches in MIXED.items():
            setattr(self, name, Mixed(channels, branches, rngs=rngs))
            channels = getattr(self, name).channels

    @property
    def config(self) -> dict:
        """The constructor's arguments (none)."""
        return {}

    def __call__(self, images: Float[Array, "N H W 3"]) -> Float[Array, "N F"]:
        """Returns FID's features.

        Args:
            images: [N, H, W, 3] in [-1, 1], of any size. They are resized to 299 x 299
                bilinearly without antialiasing, as for the published FIDs.

        Returns:
            [N, 2048], in the dtype of the images and the weights.
        """
        return self.blocks(images)[-1]

    def blocks(
        self, images: Float[Array, "N H W 3"]
    ) -> tuple[Float[Array, "N ..."], ...]:
        """Returns the activations that the published code calls blocks 0 to 3.

        Args:
            images: as for `__call__`.

        Returns:
            [N, 73, 73, 64], [N, 35, 35, 192], [N, 17, 17, 768] and [N, 2048].
        """
        x = resize(images, INPUT_SIZE)
        found = []
        for steps in STEM:
            x = _run(self, x, steps)
            found.append(x)
        for name in MIXED:
            x = getattr(self, name)(x)
            if name == "mixed_6e":
                found.append(x)
        return *found, x.mean((1, 2))


def _build(module: nnx.Module, inputs: int, steps: Branch, rngs: nnx.Rngs) -> int:
    """Adds a branch's convolutions to a module; returns its output channels."""
    for step in steps:
        if isinstance(step, str):
            continue
        convs = (step,) if isinstance(step, Conv) else step
        for conv in convs:
            setattr(module, conv.name, ConvNorm(inputs, conv, rngs=rngs))
        inputs = sum(conv.channels for conv in convs)
    return inputs


def _run(
    module: nnx.Module, x: Float[Array, "N H W I"], steps: Branch
) -> Float[Array, "N h w O"]:
    for step in steps:
        if isinstance(step, str):
            x = POOLS[step](x)
        elif isinstance(step, Conv):
            x = getattr(module, step.name)(x)
        else:
            x = jnp.concatenate([getattr(module, conv.name)(x) for conv in step], -1)
    return x


def _average_pool(x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
    """Averages 3 x 3 pixels, fewer at the edges: [N, H, W, C] to [N, H, W, C]."""
    for axis in (1, 2):
        size = x.shape[axis]
        pad = [(1, 1) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(x, pad)
        parts = (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3))
        inside = jnp.full(size, 3).at[jnp.array([0, -1])].add(-1)
        x = sum(parts) / jnp.expand_dims(inside.astype(x.dtype), (0, 3 - axis, 3))
    return x


def _maximum_pool(x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
    """Max-pools 3 x 3 pixels, fewer at the edges: [N, H, W, C] to [N, H, W, C]."""
    return nnx.max_pool(x, (3, 3), padding="SAME")


POOLS = {
    "halve": lambda x: max_pool(x, 3),
    "average": _average_pool,
    "maximum": _maximum_pool,
}
