"""dlib's face recognition network, a residual network with 29 convolutions.

One class covers `dlib_face_recognition_resnet_model_v1.dat` and networks of the same
layers with other widths. It differs from common residual networks in four ways:

- batch norms are stored as a scale and a bias per channel (dlib's `affine`);
- strided convolutions and all pooling are without padding, so odd sizes round down;
- the shortcut of a strided unit is an average over 2 x 2 pixels, without weights;
- the two terms of a residual sum may differ in size and in channels, because of both of
  these. The smaller one is padded with zeros, at the bottom, right and last channels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from guide_jax.models.lpips import max_pool
from guide_jax.models.ops import channelwise
from guide_jax.models.shapes import Array

SIZE = 150  # side of the crops, in pixels
MEAN_RGB = (122.782, 117.001, 104.298)  # dlib subtracts it from pixels of 0 to 255,
SCALE = 256  # and divides by this
# Residual units per stage. The first unit of each stage but the first has stride 2.
UNITS = (3, 4, 3, 3, 1)

# The square that dlib crops (five landmarks, padding 0.25), as fractions of the side of
# images aligned as in FFHQ. Mean over the first 200 faces of `distill/faces.py`, found
# by dlib's detector and landmarks; the standard deviations are 0.013, 0.006 and 0.022.
# dlib also turns the crop: by 0.00 radians on average, standard deviation 0.04.
CROP_LEFT, CROP_TOP, CROP_SIDE = 0.1556, 0.2593, 0.6977

# Mean cosine of two different people's embeddings, because all embeddings lie in one
# narrow cone. Measured by benchmarks/judges.py on real photos; see docs/judges.md.
STRANGERS = 0.836


class Affine(nnx.Module):
    """A scale and a bias per channel."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Maps [N, H, W, C] to [N, H, W, C]."""
        return channelwise(self.scale[...], x) * x + channelwise(self.bias[...], x)


class Stem(nnx.Module):
    """The first convolution, at stride 2, with ReLU and a max-pool of 3 x 3 pixels."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = _conv(3, channels, 7, 2, rngs=rngs)
        self.affine = Affine(channels)

    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w C"]:
        """Maps [N, 150, 150, 3] to [N, 35, 35, C]."""
        return max_pool(jax.nn.relu(self.affine(self.conv(x))), 3)


class Block(nnx.Module):
    """A residual unit; stride 2 halves the resolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        self.stride = stride
        self.conv1 = _conv(inputs, outputs, 3, stride, rngs=rngs)
        self.affine1 = Affine(outputs)
        self.conv2 = _conv(outputs, outputs, 3, rngs=rngs)
        self.affine2 = Affine(outputs)

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N h w C"]:
        """Maps [N, H, W, inputs] to [N, H // stride, W // stride, C].

        C is the larger one of the numbers of input and output channels.
        """
        shortcut = half(x) if self.stride == 2 else x
        x = jax.nn.relu(self.affine1(self.conv1(x)))
        x = self.affine2(self.conv2(x))
        return jax.nn.relu(padded_sum(x, shortcut))


class DlibResNet(nnx.Module):
    """dlib's face recognition network.

    Attributes:
        config: the constructor's arguments; JSON types, except for tuples.
    """

    kind = "dlib_resnet"

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256, 256),
        embedding_dim: int = 128,
        *,
        rngs: nnx.Rngs,
    ):
        """Builds the network with random weights.

        Args:
            widths: channels of the five stages; the stem has those of the first.
            embedding_dim: E.
            rngs: source of the initial weights (its `params` stream).

        Raises:
            ValueError: the number of widths is not that of the stages.
        """
        if len(widths) != len(UNITS):
            raise ValueError(f"{len(UNITS)} stages need as many widths, got {widths}")
        self.widths, self.embedding_dim = tuple(widths), embedding_dim
        self.stem = Stem(widths[0], rngs=rngs)
        blocks, channels = [], widths[0]
        for stride, outputs in zip(strides(), per_unit(widths), strict=True):
            blocks.append(Block(channels, outputs, stride, rngs=rngs))
            channels = max(channels, outputs)
        self.blocks = nnx.List(blocks)
        self.linear = nnx.Linear(channels, embedding_dim, use_bias=False, rngs=rngs)

    @property
    def config(self) -> dict:
        """The constructor's arguments."""
        return {"widths": self.widths, "embedding_dim": self.embedding_dim}

    def __call__(self, crops: Float[Array, "N S S 3"]) -> Float[Array, "N E"]:
        """Embeds faces.

        Args:
            crops: [N, 150, 150, 3] in [-1, 1], RGB, as dlib's `get_face_chip` crops
                them with its default padding of 0.25 (see also `face_crop`).

        Returns:
            [N, E] as dlib computes it, not of unit length. dlib takes two embeddings
            that are closer than 0.6 for the same person.

        Raises:
            ValueError: the crops are not 150 pixels square.
        """
        if crops.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(
                f"unsupported crop shape {list(crops.shape)}; this encoder takes"
                f" [N, {SIZE}, {SIZE}, 3]"
            )
        mean = jnp.asarray(MEAN_RGB, crops.dtype)
        x = ((crops + 1) * 127.5 - mean[None, None, None, :]) / SCALE
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.linear(x.mean((1, 2)))


def embed(network: DlibResNet, images: Float[Array, "N H W 3"]) -> Float[Array, "N E"]:
    """Embeds whole aligned faces.

    Args:
        network: the network.
        images: [N, H, W, 3] in [-1, 1], aligned as in FFHQ.

    Returns:
        [N, E], unit length. Cosines of different people are about `STRANGERS`.
    """
    x = network(face_crop(images))
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def face_crop(images: Float[Array, "N H W 3"]) -> Float[Array, "N S S 3"]:
    """Crops images aligned as in FFHQ where dlib's crops lie on average.

    Args:
        images: [N, H, W, 3]. The pixels are interpolated linearly, and averaged where
            the crop shrinks them.

    Returns:
        [N, 150, 150, 3], in the images' dtype and range.
    """
    N, H, W, _ = images.shape
    scale = [SIZE / (CROP_SIDE * length) for length in (H, W)]
    start = [-SIZE * edge / CROP_SIDE for edge in (CROP_TOP, CROP_LEFT)]
    return jax.image.scale_and_translate(
        images,
        (N, SIZE, SIZE, 3),
        (1, 2),
        jnp.asarray(scale, images.dtype),
        jnp.asarray(start, images.dtype),
        "linear",
    )


def half(x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
    """Averages 2 x 2 pixels; an odd last row or column is dropped."""
    N, H, W, C = x.shape
    x = x[:, : H // 2 * 2, : W // 2 * 2]
    return x.reshape(N, H // 2, 2, W // 2, 2, C).mean((2, 4))


def padded_sum(
    a: Float[Array, "N _ _ _"], b: Float[Array, "N _ _ _"]
) -> Float[Array, "N H W C"]:
    """Adds feature maps; the smaller one is padded with zeros at each axis's end."""
    shape = [max(pair) for pair in zip(a.shape, b.shape, strict=True)]

    def pad(x):
        edges = [(0, n - m) for n, m in zip(shape, x.shape, strict=True)]
        return jnp.pad(x, edges) if list(x.shape) != shape else x

    return pad(a) + pad(b)


def strides() -> list[int]:
    """Returns the stride of each residual unit, in order."""
    return [
        2 if stage and i == 0 else 1
        for stage, count in enumerate(UNITS)
        for i in range(count)
    ]


def per_unit(widths: Sequence[int]) -> list[int]:
    """Repeats each stage's width once per residual unit of the stage."""
    return [width for width, n in zip(widths, UNITS, strict=True) for _ in range(n)]


def _conv(
    inputs: int, outputs: int, size: int, stride: int = 1, *, rngs: nnx.Rngs
) -> nnx.Conv:
    padding = size // 2 if stride == 1 else 0
    return nnx.Conv(inputs, outputs, (size, size), stride, padding=padding, rngs=rngs)
