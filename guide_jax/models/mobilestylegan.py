"""MobileStyleGAN (arXiv 2104.04767): StyleGAN2's W space, wavelets, light convolutions.

A modulated 3x3 convolution runs at 4 px. Each level then doubles the resolution with a
modulated inverse Haar transform and two modulated depthwise-separable convolutions.
Finally, a modulated 1x1 head gives 12 wavelet channels, which another inverse transform
turns into an RGB image of twice the last level's resolution. There is no demodulation:
a style only scales a convolution's input. Truncated after fewer levels and given its
own head, the same network makes smaller images at a fraction of the cost (see
`distill/`).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from guide_jax.models import ops
from guide_jax.models.shapes import Array
from guide_jax.models.stylegan2 import Mapping, check_input

WAVELET_CHANNELS = 12  # three colours, four Haar bands each


class MobileStyleGAN(nnx.Module):
    """A generator with the interface of `stylegan2.StyleGAN2`.

    Attributes:
        mapping: z `[N, Z]` -> w `[N, L, D]`, float32.
        synthesis: w `[N, L, D]` -> (image `[N, H, W, 3]`, named activations).
        num_ws: L, one style per modulation: 2, plus 3 per level.
        resolution: side of the image, in pixels.
    """

    kind: ClassVar[str] = "mobilestylegan"

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        z_dim: int = 512,
        w_dim: int = 512,
        mapping_layers: int = 8,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            channels: feature channels at 4, 8, 16, ... px; all but the last must be
                multiples of four. The image has twice the last resolution.
            z_dim: length of z.
            w_dim: length of w.
            mapping_layers: depth of the mapping network.
            rngs: source of the initial weights.
        """
        self.channels, self.mapping_layers = tuple(channels), mapping_layers
        self.z_dim, self.w_dim = z_dim, w_dim
        self.synthesis = Synthesis(channels, w_dim, rngs)
        self.num_ws = self.synthesis.num_ws
        self.resolution = self.synthesis.resolution
        self.mapping = Mapping(
            z_dim=z_dim,
            w_dim=w_dim,
            num_ws=self.num_ws,
            num_layers=mapping_layers,
            lr_multiplier=0.01,
            rngs=rngs,
        )

    @property
    def feature_name(self) -> str:
        """Name of the activation that the last output head reads."""
        return self.synthesis.feature_name

    @property
    def config(self) -> dict:
        """The constructor's arguments."""
        return {
            "channels": self.channels,
            "z_dim": self.z_dim,
            "w_dim": self.w_dim,
            "mapping_layers": self.mapping_layers,
        }


class Synthesis(nnx.Module):
    """Maps w to an image; `feature_name` names the activation that the head reads."""

    def __init__(self, channels: tuple[int, ...], w_dim: int, rngs: nnx.Rngs):
        self.num_ws = 2 + 3 * (len(channels) - 1)
        self.resolution = 4 * 2 ** len(channels)
        self.block_names = tuple(f"b{4 * 2**i}" for i in range(len(channels)))
        self.feature_name = f"{self.block_names[-1]}.x"
        self.b4 = Stem(channels[0], w_dim, rngs)
        for i, name in enumerate(self.block_names[1:]):
            size = 8 * 2**i
            setattr(self, name, Level(channels[i], channels[i + 1], size, w_dim, rngs))
        self.head = Head(channels[-1], w_dim, rngs)

    def __call__(
        self,
        w: Float[Array, "... L D"],  # any rank: check_input's error is plainer
        noise: str = "const",
        dtype: jax.typing.DTypeLike | None = None,
    ) -> tuple[Float[Array, "N H W 3"], dict[str, Float[Array, "N _ _ _"]]]:
        """Synthesises images.

        Args:
            w: `[N, L, D]`.
            noise: "const" for the stored noise planes, "none" for no noise.
            dtype: dtype of the convolutions; None for the parameters'.

        Returns:
            The image `[N, H, W, 3]`, about [-1, 1], and the activations by name
            ("b4.x", "b8.conv0", "b8.x", ...), each `[N, h, w, C]`. The image always
            has the parameters' dtype.

        Raises:
            ValueError: w does not hold num_ws styles, or the noise mode is unknown.
        """
        check_input(w, self.num_ws, noise)
        x = self.b4(w[:, 0], noise, dtype)  # [N, 4, 4, C]
        activations = {"b4.x": x}
        for i, name in enumerate(self.block_names[1:]):
            level = getattr(self, name)
            styles = w[:, 1 + 3 * i : 4 + 3 * i]  # [N, 3, D]
            activations[f"{name}.conv0"], x = level(x, styles, noise)
            activations[f"{name}.x"] = x
        return self.head(x, w[:, -1]), activations

    def affine_layers(self) -> list[tuple[int, "Affine"]]:
        """Returns each layer that reads a style, and which of the L styles it reads."""
        layers = [(0, self.b4.affine), (self.num_ws - 1, self.head.affine)]
        for i, name in enumerate(self.block_names[1:]):
            level = getattr(self, name)
            affine = (level.up, level.conv0.affine, level.conv1.affine)
            layers += [(1 + 3 * i + j, layer) for j, layer in enumerate(affine)]
        return layers


class Affine(nnx.Module):
    """Maps a style to a scale per channel: w `[N, D]` -> `[N, 1, 1, C]`."""

    def __init__(self, w_dim: int, channels: int, rngs: nnx.Rngs):
        self.weight = nnx.Param(
            jax.random.normal(rngs.params(), (w_dim, channels)) * w_dim**-0.5
        )
        self.bias = nnx.Param(jnp.ones(channels))

    def __call__(self, w: Float[Array, "N D"]) -> Float[Array, "N 1 1 C"]:
        """Maps styles to scales."""
        scale = w @ self.weight[...]  # [N, C]
        return (scale + self.bias[...][None, :])[:, None, None, :]


class Stem(nnx.Module):
    """The learned constant and the only full modulated convolution, at 4 px."""

    def __init__(self, channels: int, w_dim: int, rngs: nnx.Rngs):
        self.const = nnx.Param(jax.random.normal(rngs.params(), (4, 4, channels)))
        self.affine = Affine(w_dim, channels, rngs)
        self.weight = nnx.Param(
            jax.random.normal(rngs.params(), (3, 3, channels, channels))
        )
        self.bias = nnx.Param(jnp.zeros(channels))
        self.noise_const = ops.Buffer(jnp.zeros((4, 4)))
        self.scale = (9 * channels) ** -0.5

    def __call__(
        self,
        w: Float[Array, "N D"],
        noise: str,
        dtype: jax.typing.DTypeLike | None = None,
    ) -> Float[Array, "N 4 4 C"]:
        """Maps styles `[N, D]` to features `[N, 4, 4, C]` in that dtype."""
        x = self.const[...][None] * (self.scale * self.affine(w))  # [N, 4, 4, C]
        x = x.astype(dtype or x.dtype)
        x = ops.conv(x, self.weight[...].astype(x.dtype))
        return _activate(x, self, noise)


class SeparableConv(nnx.Module):
    """Modulated depthwise 3x3 and pointwise convolutions, noise, bias, leaky ReLU."""

    def __init__(
        self, inputs: int, outputs: int, size: int, w_dim: int, rngs: nnx.Rngs
    ):
        self.affine = Affine(w_dim, inputs, rngs)
        self.depthwise = nnx.Param(jax.random.normal(rngs.params(), (3, 3, inputs)))
        self.pointwise = nnx.Param(jax.random.normal(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.noise_const = ops.Buffer(jnp.zeros((size, size)))
        self.scale = (9 * inputs) ** -0.5

    def __call__(
        self, x: Float[Array, "N H W I"], w: Float[Array, "N D"], noise: str
    ) -> Float[Array, "N H W O"]:
        """Maps features `[N, H, W, C]` under styles `[N, D]` to `[N, H, W, C']`."""
        dtype = x.dtype
        style = self.scale * self.affine(w)  # [N, 1, 1, C]
        x = (x.astype(style.dtype) * style).astype(dtype)
        x = depthwise(x, self.depthwise[...])
        return _activate(x @ self.pointwise[...].astype(dtype), self, noise)


class Level(nnx.Module):
    """Doubles the resolution: `[N, h, w, C]` -> `[N, 2h, 2w, C']`."""

    def __init__(
        self, inputs: int, outputs: int, size: int, w_dim: int, rngs: nnx.Rngs
    ):
        self.up = Affine(w_dim, inputs, rngs)
        self.conv0 = SeparableConv(inputs // 4, outputs, size, w_dim, rngs)
        self.conv1 = SeparableConv(outputs, outputs, size, w_dim, rngs)

    def __call__(
        self,
        x: Float[Array, "N h w I"],
        styles: Float[Array, "N 3 D"],
        noise: str,
    ) -> tuple[Float[Array, "N 2*h 2*w O"], Float[Array, "N 2*h 2*w O"]]:
        """Returns the features of both convolutions under styles `[N, 3, D]`."""
        style = self.up(styles[:, 0])  # [N, 1, 1, C]
        up = haar_inverse(x.astype(style.dtype) * style)  # [N, 2h, 2w, C / 4]
        x = up.astype(x.dtype)
        first = self.conv0(x, styles[:, 1], noise)
        return first, self.conv1(first, styles[:, 2], noise)


class Head(nnx.Module):
    """Features `[N, h, w, C]` -> RGB `[N, 2h, 2w, 3]` through 12 wavelet channels."""

    def __init__(self, channels: int, w_dim: int, rngs: nnx.Rngs):
        self.affine = Affine(w_dim, channels, rngs)
        self.weight = nnx.Param(
            jax.random.normal(rngs.params(), (channels, WAVELET_CHANNELS))
        )
        self.bias = nnx.Param(jnp.zeros(WAVELET_CHANNELS))
        self.scale = channels**-0.5

    def __call__(
        self, x: Float[Array, "N h w C"], w: Float[Array, "N D"]
    ) -> Float[Array, "N 2*h 2*w 3"]:
        """Maps features under styles `[N, D]` to an image in the styles' dtype."""
        # The style scales the kernel, because [N, C, 12] is far smaller than x.
        kernel = self.scale * self.affine(w)[:, 0, 0, :, None] * self.weight[...][None]
        x = ops.product("nhwc,nck->nhwk", x, kernel)
        return haar_inverse(x + ops.channelwise(self.bias[...], x))


def haar_inverse(x: Float[Array, "N h w C"]) -> Float[Array, "N 2*h 2*w C//4"]:
    """Orthonormal inverse Haar transform: `[N, h, w, 4C]` -> `[N, 2h, 2w, C]`.

    The first quarter of the channels is the low band. The rest are consecutive triples
    of vertical, horizontal and diagonal detail.
    """
    n, h, w, c = x.shape
    low = x[..., : c // 4]
    high = x[..., c // 4 :].reshape(n, h, w, c // 4, 3)
    vertical, horizontal, diagonal = (high[..., i] for i in range(3))
    even, odd = low + horizontal, low - horizontal
    detail_even, detail_odd = vertical + diagonal, vertical - diagonal
    top = jnp.stack([even + detail_even, odd + detail_odd], axis=3)
    bottom = jnp.stack([even - detail_even, odd - detail_odd], axis=3)
    pixels = 0.5 * jnp.stack([top, bottom], axis=2)  # [N, h, 2, w, 2, C]
    return pixels.reshape(n, 2 * h, 2 * w, c // 4)


@jax.custom_vjp
def depthwise(
    x: Float[Array, "N H W C"], kernel: Float[Array, "3 3 C"]
) -> Float[Array, "N H W C"]:
    """Convolves depthwise, `[N, H, W, C]` by `[3, 3, C]`, with zero padding.

    It sums nine shifted products, because XLA:CPU has no fast depthwise convolution.
    The kernel's gradient is summed row by row, which halves the backward pass's time
    there. Products and sums have the kernel's dtype; the result has x's.
    """
    h, w = x.shape[1:3]
    padded = _pad(x)
    y = ops.sum_of(
        padded[:, i : i + h, j : j + w].astype(kernel.dtype)
        * kernel[i, j][None, None, None, :]
        for i in range(3)
        for j in range(3)
    )
    return y.astype(x.dtype)


def _depthwise_forward(x, kernel):
    return depthwise(x, kernel), (x, kernel)


def _depthwise_backward(residuals, gradient):
    x, kernel = residuals
    h, w = x.shape[1:3]
    padded = _pad(x)

    def add_row(total, row):
        rows = jax.lax.dynamic_slice_in_dim(padded, row, 3, 1)  # [N, 3, W + 2, C]
        gradient_row = jax.lax.dynamic_slice_in_dim(gradient, row, 1, 1)
        gradient_row = gradient_row.astype(kernel.dtype)
        products = [
            (rows[:, :, j : j + w].astype(kernel.dtype) * gradient_row).sum((0, 2))
            for j in range(3)
        ]
        return total + jnp.stack(products, axis=1), None

    kernel_gradient, _ = jax.lax.scan(add_row, jnp.zeros_like(kernel), jnp.arange(h))
    return depthwise(gradient, kernel[::-1, ::-1]), kernel_gradient


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _pad(x: Float[Array, "N H W C"]) -> Float[Array, "N H+2 W+2 C"]:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _activate(
    x: Float[Array, "N H W C"], layer: Stem | SeparableConv, noise: str
) -> Float[Array, "N H W C"]:
    bias = layer.bias[...]
    y = x.astype(bias.dtype)
    if noise == "const":
        y = y + layer.noise_const[...][None, :, :, None]
    return ops.leaky_relu(y + ops.channelwise(bias, y), gain=1.0).astype(x.dtype)
