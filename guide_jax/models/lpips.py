"""LPIPS v0.1, a perceptual distance between images (arXiv 1801.03924).

A network trained on ImageNet (VGG16 or AlexNet) gives feature maps at five depths.
Each is brought to length 1 per pixel, and the squared differences are weighted by a
trained head and averaged over the map.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from guide_jax.models.ops import CONV_DIMS

# From [-1, 1] to what torchvision's networks were trained on, per channel.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

EPSILON = 1e-10


class Layer(NamedTuple):
    """A convolution with ReLU, `pool` the side of the max-pool (stride 2) before it."""

    channels: int
    size: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    tap: bool = False  # whether its output is one of the five feature maps


NETS = {
    "vgg": (
        Layer(64),
        Layer(64, tap=True),
        Layer(128, pool=2),
        Layer(128, tap=True),
        Layer(256, pool=2),
        Layer(256),
        Layer(256, tap=True),
        Layer(512, pool=2),
        Layer(512),
        Layer(512, tap=True),
        Layer(512, pool=2),
        Layer(512),
        Layer(512, tap=True),
    ),
    "alex": (
        Layer(64, size=11, stride=4, padding=2, tap=True),
        Layer(192, size=5, padding=2, pool=3, tap=True),
        Layer(384, pool=3, tap=True),
        Layer(256, tap=True),
        Layer(256, tap=True),
    ),
}


class LPIPS(nnx.Module):
    """The distance, with its network and heads."""

    kind = "lpips"

    def __init__(self, net: str = "vgg", *, rngs: nnx.Rngs):
        """Builds the network with random weights.

        Args:
            net: "vgg" or "alex".
            rngs: draws the weights from its `params` stream.

        Raises:
            ValueError: there is no such net.
        """
        if net not in NETS:
            known = ", ".join(map(repr, sorted(NETS)))
            raise ValueError(f"LPIPS has no net {net!r}; it has {known}")
        self.net = net
        convs, inputs = [], 3
        for layer in NETS[net]:
            convs.append(
                nnx.Conv(
                    inputs,
                    layer.channels,
                    (layer.size, layer.size),
                    strides=layer.stride,
                    padding=layer.padding,
                    rngs=rngs,
                )
            )
            inputs = layer.channels
        self.convs = nnx.List(convs)
        self.heads = nnx.List(
            nnx.Param(jnp.full((layer.channels,), 1 / layer.channels))
            for layer in NETS[net]
            if layer.tap
        )

    @property
    def config(self) -> dict:
        """The constructor's arguments."""
        return {"net": self.net}

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Returns the distance of image pairs.

        Args:
            a: [N, H, W, 3] in [-1, 1].
            b: the same shape. Where one side is constant, compute its `features` once
                and use `distance`.

        Returns:
            [N]; equal images give 0, up to the square of rounding errors.

        Raises:
            ValueError: the shapes differ, or are too small for the network.
        """
        if a.shape != b.shape:
            raise ValueError(f"images differ in shape: {a.shape} and {b.shape}")
        return self.distance(self.features(a), self.features(b))

    def raw_features(
        self, images: jax.Array, dtype: jax.typing.DTypeLike | None = None
    ) -> tuple[jax.Array, ...]:
        """Returns the five feature maps after their ReLU.

        Args:
            images: [N, H, W, 3] in [-1, 1].
            dtype: that convolutions run in; None: the images'.

        Returns:
            [N, h, w, C] each, of that dtype; h and w shrink with depth.

        Raises:
            ValueError: the images are too small for the network.
        """
        shift, scale = (jnp.asarray(x, images.dtype) for x in (SHIFT, SCALE))
        x = ((images - shift) / scale).astype(dtype or images.dtype)
        maps = []
        for layer, conv in zip(NETS[self.net], self.convs, strict=True):
            if layer.pool:
                x = max_pool(x, layer.pool)
            if 0 in x.shape[1:]:
                H, W = images.shape[1:3]
                raise ValueError(f"{H}x{W} images are too small for LPIPS {self.net}")
            x = convolve(x, conv, layer)
            if layer.tap:
                maps.append(x)
        return tuple(maps)

    def features(
        self, images: jax.Array, dtype: jax.typing.DTypeLike | None = None
    ) -> tuple[jax.Array, ...]:
        """Returns the five feature maps of [N, H, W, 3] images, unit length per pixel.

        A pixel where all channels are 0 stays 0. Convolutions run in `dtype`, the
        images' if None; the result has the images'.
        """
        maps = self.raw_features(images, dtype)
        return tuple(unit_length(x.astype(images.dtype)) for x in maps)

    def layer_distances(
        self, features_a: tuple[jax.Array, ...], features_b: tuple[jax.Array, ...]
    ) -> jax.Array:
        """Returns each depth's part of the distance, [N, 5]."""
        parts = [
            ((a - b) ** 2 @ head[...]).mean((1, 2))
            for a, b, head in zip(features_a, features_b, self.heads, strict=True)
        ]
        return jnp.stack(parts, axis=1)

    def distance(
        self, features_a: tuple[jax.Array, ...], features_b: tuple[jax.Array, ...]
    ) -> jax.Array:
        """Returns the distance [N] of two results of `features`, either constant."""
        return self.layer_distances(features_a, features_b).sum(1)

    def raw_distance(
        self,
        maps_a: tuple[jax.Array, ...],
        maps_b: tuple[jax.Array, ...],
        dtype: jax.typing.DTypeLike | None = None,
    ) -> jax.Array:
        """Returns the distance [N] of two results of `raw_features`, in `dtype`.

        For training: backward needs the maps as they are, and nothing else is kept.
        """

        @jax.checkpoint
        def compare(a, b, head):
            a, b = (unit_length(x.astype(dtype or x.dtype)) for x in (a, b))
            return ((a - b) ** 2 @ head).mean((1, 2))

        heads = (head[...] for head in self.heads)
        return sum(map(compare, maps_a, maps_b, heads))


def convolve(x: jax.Array, conv: nnx.Conv, layer: Layer) -> jax.Array:
    """Convolves, adds the bias and takes the ReLU; the convolution in x's dtype."""
    y = jax.lax.conv_general_dilated(
        x,
        conv.kernel[...].astype(x.dtype),
        (layer.stride, layer.stride),
        [(layer.padding, layer.padding)] * 2,
        dimension_numbers=CONV_DIMS,
    )
    return jax.nn.relu(y + conv.bias[...]).astype(x.dtype)


def unit_length(x: jax.Array) -> jax.Array:
    """Brings [N, h, w, C] to length 1 along C; zeros stay, with finite gradients."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)  # [N, h, w, 1]
    # The square root's slope at 0 is infinite, and `where` alone turns it into a NaN.
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return x / (norm + EPSILON)


def max_pool(x: jax.Array, size: int) -> jax.Array:
    """Max-pools [N, H, W, C] over size x size windows at stride 2, without padding.

    It is made of slices, one axis after the other: the gradient of XLA's windowed
    maximum took 36 times longer on a CPU (128 px, 64 channels).
    """
    for axis in (1, 2):
        count = (x.shape[axis] - size) // 2 + 1
        if count < 1:
            return x[:, :0]  # no window fits
        parts = (
            jax.lax.slice_in_dim(x, i, i + 2 * count - 1, 2, axis) for i in range(size)
        )
        x = functools.reduce(jnp.maximum, parts)
    return x
