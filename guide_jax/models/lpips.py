"""LPIPS v0.1, a perceptual distance between images (arXiv 1801.03924).

A network trained on ImageNet (VGG16 or AlexNet) gives feature maps at five depths. Each
map is normalised to unit length per pixel. The squared differences are weighted by a
trained head and averaged over the map.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from guide_jax.models.ops import CONV_DIMS, channelwise
from guide_jax.models.shapes import Array

# Map [-1, 1] to the input range of torchvision's networks, per channel.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

EPSILON = 1e-10

FeatureMap = Float[Array, "N _ _ _"]


class Layer(NamedTuple):
    """A convolution with ReLU; `pool` is the side of the max-pool before it (or 0)."""

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
            rngs: source of the initial weights (its `params` stream).

        Raises:
            ValueError: the net is unknown.
        """
        if net not in NETS:
            known = ", ".join(map(repr, sorted(NETS)))
            raise ValueError(f"unknown LPIPS net {net!r}; choose one of {known}")
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

    def __call__(
        self, a: Float[Array, "N H W 3"], b: Float[Array, "N h w 3"]
    ) -> Float[Array, " N"]:
        """Returns the distances of image pairs.

        Args:
            a: [N, H, W, 3] in [-1, 1].
            b: the same shape. If one side is constant, compute its `features` once and
                use `distance`.

        Returns:
            [N]; equal images give 0 up to squared rounding errors.

        Raises:
            ValueError: the shapes differ, or the images are too small for the network.
        """
        if a.shape != b.shape:
            raise ValueError(
                f"images differ in shape: {list(a.shape)} and {list(b.shape)}"
            )
        return self.distance(self.features(a), self.features(b))

    def raw_features(
        self,
        images: Float[Array, "N H W 3"],
        dtype: jax.typing.DTypeLike | None = None,
    ) -> tuple[FeatureMap, ...]:
        """Returns the five feature maps after their ReLU.

        Args:
            images: [N, H, W, 3] in [-1, 1].
            dtype: dtype of the convolutions; None for the images'.

        Returns:
            [N, h, w, C] each, in that dtype; h and w shrink with depth.

        Raises:
            ValueError: the images are too small for the network.
        """
        shift, scale = (jnp.asarray(x, images.dtype) for x in (SHIFT, SCALE))
        shift, scale = channelwise(shift, images), channelwise(scale, images)
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
        self,
        images: Float[Array, "N H W 3"],
        dtype: jax.typing.DTypeLike | None = None,
    ) -> tuple[FeatureMap, ...]:
        """Returns the five feature maps of [N, H, W, 3] images, unit length per pixel.

        Pixels whose channels are all 0 stay 0. Convolutions run in `dtype` (None for
        the images' dtype); the result has the images' dtype.
        """
        maps = self.raw_features(images, dtype)
        return tuple(unit_length(x.astype(images.dtype)) for x in maps)

    def layer_distances(
        self, features_a: tuple[FeatureMap, ...], features_b: tuple[FeatureMap, ...]
    ) -> Float[Array, "N K"]:
        """Returns the distance at each depth, [N, 5]."""
        parts = [
            ((a - b) ** 2 @ head[...]).mean((1, 2))
            for a, b, head in zip(features_a, features_b, self.heads, strict=True)
        ]
        return jnp.stack(parts, axis=1)

    def distance(
        self, features_a: tuple[FeatureMap, ...], features_b: tuple[FeatureMap, ...]
    ) -> Float[Array, " N"]:
        """Returns the distance [N] between two results of `features`.

        Either may be constant.
        """
        return self.layer_distances(features_a, features_b).sum(1)

    def raw_distance(
        self,
        maps_a: tuple[FeatureMap, ...],
        maps_b: tuple[FeatureMap, ...],
        dtype: jax.typing.DTypeLike | None = None,
    ) -> Float[Array, " N"]:
        """Returns the distance [N] between two results of `raw_features`, in `dtype`.

        For training: the backward pass keeps only the raw maps and recomputes the rest.
        """

        @jax.checkpoint
        def compare(a, b, head):
            a, b = (unit_length(x.astype(dtype or x.dtype)) for x in (a, b))
            return (((a - b) ** 2).astype(head.dtype) @ head).mean((1, 2))

        heads = (head[...] for head in self.heads)
        return sum(map(compare, maps_a, maps_b, heads))


def convolve(
    x: Float[Array, "N H W I"], conv: nnx.Conv, layer: Layer
) -> Float[Array, "N h w O"]:
    """Convolves in x's dtype, adds the bias and applies ReLU."""
    y = jax.lax.conv_general_dilated(
        x,
        conv.kernel[...].astype(x.dtype),
        (layer.stride, layer.stride),
        [(layer.padding, layer.padding)] * 2,
        dimension_numbers=CONV_DIMS,
    )
    assert conv.bias is not None
    bias = conv.bias[...]
    y = y.astype(bias.dtype) + channelwise(bias, y)
    return jax.nn.relu(y).astype(x.dtype)


def unit_length(x: Float[Array, "N h w C"]) -> Float[Array, "N h w C"]:
    """Normalises [N, h, w, C] along C; zeros stay zero, with finite gradients."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)  # [N, h, w, 1]
    # The square root's slope at 0 is infinite; a single `where` would make it NaN.
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return x / (norm + EPSILON)


def max_pool(x: Float[Array, "N H W C"], size: int) -> Float[Array, "N h w C"]:
    """Max-pools [N, H, W, C] over size x size windows at stride 2, without padding.

    It combines slices along one axis at a time, because the gradient of XLA's windowed
    maximum took 36 times as long on a CPU (128 px, 64 channels).
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
