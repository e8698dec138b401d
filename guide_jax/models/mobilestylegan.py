"""MobileStyleGAN (arXiv 2104.04767): StyleGAN2's W, wavelets, light convolutions.

One modulated 3x3 convolution at 4 px; then each level doubles the resolution with a
modulated inverse Haar transform and two modulated depthwise-separable convolutions. At
the end a modulated 1x1 head gives 12 wavelet channels, which one more inverse transform
turns into an RGB image of twice the last level's resolution. There is no demodulation:
a style scales a convolution's input and no more. Cut after fewer levels, with a head of
its own, the same network makes smaller images at a small part of the cost (see
`distill/`).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from guide_jax.models import ops
from guide_jax.models.stylegan2 import Mapping, check_input

WAVELET_CHANNELS = 12  # three colours, each in four Haar bands


class MobileStyleGAN(nnx.Module):
    """A generator with the same interface as `stylegan2.StyleGAN2`.

    Attributes:
        mapping: z `[N, Z]` -> w `[N, L, D]`, float32.
        synthesis: w `[N, L, D]` -> (image `[N, H, W, 3]`, named activations).
        num_ws: L, one style for each modulation: 2 + 3 for each level.
        resolution: side of the image in pixels.
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
            channels: feature channels at 4, 8, 16, ... px; all but the last are
                multiples of four. The image has twice the last one's resolution.
            z_dim: length of z.
            w_dim: length of w.
            mapping_layers: depth of the mapping network.
            rngs: for the initial weights.
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
    def config(self) -> dict:
        """The constructor's arguments."""
        return {
            "channels": self.channels,
            "z_dim": self.z_dim,
            "w_dim": self.w_dim,
            "mapping_layers": self.mapping_layers,
        }


class Synthesis(nnx.Module):
    """w -> image; `feature_name` names the activation that the head reads."""

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
        w: jax.Array,
        noise: str = "const",
        dtype: jax.typing.DTypeLike | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Synthesises images.

        Args:
            w: `[N, L, D]`.
            noise: "const" for the stored noise planes, "none" for no noise.
            dtype: that convolutions run in; None: the parameters'.

        Returns:
            The image `[N, H, W, 3]`, about [-1, 1], and the activations by name
            ("b4.x", "b8.conv0", "b8.x", ...), each `[N, h, w, C]`. Whatever `dtype` is,
            the image has the parameters'.

        Raises:
            ValueError: w has not num_ws styles, or the noise mode is unknown.
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


class Affine(nnx.Module):
    """A style's scale for each channel: w `[N, D]` -> `[N, 1, 1, C]`."""

    def __init__(self, w_dim: int, channels: int, rngs: nnx.Rngs):
        self.weight = nnx.Param(
            jax.random.normal(rngs.params(), (w_dim, channels)) * w_dim**-0.5
        )
        self.bias = nnx.Param(jnp.ones(channels))

    def __call__(self, w: jax.Array) -> jax.Array:
        """Maps styles to scales."""
        return (w @ self.weight[...] + self.bias[...])[:, None, None, :]


class Stem(nnx.Module):
    """The learned constant and the one full modulated convolution, at 4 px."""

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
        self, w: jax.Array, noise: str, dtype: jax.typing.DTypeLike | None = None
    ) -> jax.Array:
        """Maps styles `[N, D]` to features `[N, 4, 4, C]`, of that dtype."""
        x = self.const[...] * (self.scale * self.affine(w))  # [N, 4, 4, C]
        x = x.astype(dtype or x.dtype)
        x = ops.conv(x, self.weight[...].astype(x.dtype))
        return _activate(x, self, noise)


class SeparableConv(nnx.Module):
    """Modulated depthwise 3x3, then pointwise convolution, noise, bias, leaky ReLU."""

    def __init__(
        self, inputs: int, outputs: int, size: int, w_dim: int, rngs: nnx.Rngs
    ):
        self.affine = Affine(w_dim, inputs, rngs)
        self.depthwise = nnx.Param(jax.random.normal(rngs.params(), (3, 3, inputs)))
        self.pointwise = nnx.Param(jax.random.normal(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.noise_const = ops.Buffer(jnp.zeros((size, size)))
        self.scale = (9 * inputs) ** -0.5

    def __call__(self, x: jax.Array, w: jax.Array, noise: str) -> jax.Array:
        """Maps features `[N, H, W, C]` under styles `[N, D]` to `[N, H, W, C']`."""
        dtype = x.dtype
        x = (x * (self.scale * self.affine(w))).astype(dtype)
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
        self, x: jax.Array, styles: jax.Array, noise: str
    ) -> tuple[jax.Array, jax.Array]:
        """Maps features under styles `[N, 3, D]` to those of both convolutions."""
        up = haar_inverse(x * self.up(styles[:, 0]))  # [N, 2h, 2w, C / 4]
        x = up.astype(x.dtype)
        first = self.conv0(x, styles[:, 1], noise)
        return first, self.conv1(first, styles[:, 2], noise)


class Head(nnx.Module):
    """Features `[N, h, w, C]` -> RGB `[N, 2h, 2w, 3]` by way of 12 wavelet channels."""

    def __init__(self, channels: int, w_dim: int, rngs: nnx.Rngs):
        self.affine = Affine(w_dim, channels, rngs)
        self.weight = nnx.Param(
            jax.random.normal(rngs.params(), (channels, WAVELET_CHANNELS))
        )
        self.bias = nnx.Param(jnp.zeros(WAVELET_CHANNELS))
        self.scale = channels**-0.5

    def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """Maps features under styles `[N, D]` to an image of their dtype."""
        # Into the kernel rather than the activations: [N, C, 12] is far smaller.
        kernel = self.scale * self.affine(w)[:, 0, 0, :, None] * self.weight[...]
        x = ops.product("nhwc,nck->nhwk", x, kernel) + self.bias[...]
        return haar_inverse(x)


def haar_inverse(x: jax.Array) -> jax.Array:
    """Orthonormal inverse Haar transform: `[N, h, w, 4C]` -> `[N, 2h, 2w, C]`.

    The first quarter of the channels is the low band; the rest are triples (vertical,
    horizontal, diagonal detail), one triple after another.
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
def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 depthwise convolution, `[N, H, W, C]` by `[3, 3, C]`, zero padding.

    As nine shifted products: XLA:CPU has no fast depthwise convolution. The kernel's
    gradient is summed row by row, which halves the time of the way back there. Products
    and sums have the kernel's dtype, the result has that of x.
    """
    h, w = x.shape[1:3]
    padded = _pad(x)
    y = sum(
        padded[:, i : i + h, j : j + w] * kernel[i, j]
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
            (rows[:, :, j : j + w] * gradient_row).sum((0, 2)) for j in range(3)
        ]
        return total + jnp.stack(products, axis=1), None

    kernel_gradient, _ = jax.lax.scan(add_row, jnp.zeros_like(kernel), jnp.arange(h))
    return depthwise(gradient, kernel[::-1, ::-1]), kernel_gradient


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _pad(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _activate(x: jax.Array, layer: nnx.Module, noise: str) -> jax.Array:
    y = x + layer.noise_const[...][..., None] if noise == "const" else x
    return ops.leaky_relu(y + layer.bias[...], gain=1.0).astype(x.dtype)
