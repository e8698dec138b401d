"""Operations shared by the generators: FIR resampling, modulation, activations.

Images and activations are NHWC, kernels HWIO. Every function keeps its input's dtype:
float32 in use, float64 where tests compare gradients. A layer's input may be bfloat16
with float32 parameters. Convolutions then read and write bfloat16 and accumulate in
float32, and everything between them is float32.
"""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Float

from guide_jax.models import conv_gradients
from guide_jax.models.shapes import Array

CONV_DIMS = ("NHWC", "HWIO", "NHWC")
# StyleGAN2's only smoothing filter: [1, 3, 3, 1] along either axis, with sum 1.
FIR = (0.125, 0.375, 0.375, 0.125)
LEAKY_SLOPE = 0.2
# The published code adds this to sums of squares before dividing by their root.
EPSILON = 1e-8


class Buffer(nnx.Variable):
    """An array of a network that is not trained: stored noise, w_avg."""


def freeze(network: nnx.Module) -> None:
    """Turns all parameters of a network into buffers, which training leaves alone."""
    for _, module in nnx.iter_modules(network):
        for name, leaf in list(vars(module).items()):
            if isinstance(leaf, nnx.Param):
                setattr(module, name, Buffer(leaf[...]))


class Linear(nnx.Module):
    """A dense layer with equalised learning rate: weights are scaled in the call.

    Args:
        fan_in: length of an input vector.
        fan_out: length of an output vector.
        lr_multiplier: factor on weight and bias; weights start at 1 / lr_multiplier.
        bias_init: initial value of the bias.
        rngs: source of the initial weights.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        *,
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.weight = nnx.Param(normal(rngs, (fan_in, fan_out)) / lr_multiplier)
        self.bias = nnx.Param(jnp.full((fan_out,), bias_init, jnp.float32))
        self.lr_multiplier = lr_multiplier

    def __call__(self, x: Float[Array, "*n I"]) -> Float[Array, "*n O"]:
        """Maps [..., fan_in] to [..., fan_out]."""
        weight, bias = self.weight[...], self.bias[...]
        gain = self.lr_multiplier / math.sqrt(weight.shape[0])
        y = x @ weight * gain
        return y + channelwise(bias * self.lr_multiplier, y)


def channelwise(
    vector: Float[Array, " C"], x: Float[Array, "... C"]
) -> Float[Array, "... C"]:
    """Reshapes [C] to [1, ..., 1, C] with as many axes as x, to broadcast with it."""
    return lax.expand_dims(vector, range(x.ndim - 1))


def normal(rngs: nnx.Rngs, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Draws float32 values from the standard normal distribution."""
    return jax.random.normal(rngs.params(), shape, jnp.float32)


def sum_of(terms: Iterable[Array]) -> Array:
    """Sums arrays in order. It is `sum`, whose type would include the integer 0."""
    return sum(terms)  # type: ignore[return-value]


def normalize_2nd_moment(x: Float[Array, "*n Z"]) -> Float[Array, "*n Z"]:
    """Scales each vector of [..., Z] to a mean square of 1."""
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON)


def leaky_relu(
    x: Float[Array, "*shape"],
    gain: float = math.sqrt(2),
    clamp: float | int | None = None,
) -> Float[Array, "*shape"]:
    """Returns leaky ReLU (slope 0.2) times `gain`, clipped to [-clamp, clamp]."""
    y = jnp.where(x > 0, x, LEAKY_SLOPE * x) * gain
    return y if clamp is None else jnp.clip(y, -clamp, clamp)


@jax.custom_vjp
def conv(
    x: Float[Array, "N H W I"], weight: Float[Array, "k k I O"]
) -> Float[Array, "N H W O"]:
    """Convolves at stride 1, keeping the size: [N, H, W, I] to [N, H, W, O].

    The weight is [k, k, I, O]. Supports only reverse-mode differentiation, of any
    order.
    """
    return _plain_conv(x, weight)


def _plain_conv(
    x: Float[Array, "N H W I"], weight: Float[Array, "k k I O"]
) -> Float[Array, "N H W O"]:
    return lax.conv_general_dilated(
        x, weight, (1, 1), "SAME", dimension_numbers=CONV_DIMS
    )


def _conv_forward(x, weight):
    return conv(x, weight), (x, weight)


def _conv_backward(residuals, y_bar):
    x, weight = residuals

    def plain(x, y_bar):
        return jax.vjp(lambda w: _plain_conv(x, w), weight)[1](y_bar)[0]

    def products(x, y_bar):
        return conv_gradients.weight_gradient(x, y_bar, weight.shape[0])

    (x_bar,) = jax.vjp(lambda x: _plain_conv(x, weight), x)[1](y_bar)
    if x.shape[1] * x.shape[2] < conv_gradients.FEWEST_PIXELS:
        return x_bar, plain(x, y_bar)
    return x_bar, lax.platform_dependent(x, y_bar, cpu=products, default=plain)


conv.defvjp(_conv_forward, _conv_backward)


@jax.custom_vjp
def up_conv(
    x: Float[Array, "N H W I"], weight: Float[Array, "k k I O"]
) -> Float[Array, "N 2*H+k-2 2*W+k-2 O"]:
    """Applies a transposed convolution at stride 2, without padding.

    Args:
        x: [N, H, W, I].
        weight: [k, k, I, O].

    Returns:
        [N, 2H + k - 2, 2W + k - 2, O]; input pixel i adds `x[i] * weight[j]` to output
        pixel 2i + j. Supports only reverse-mode differentiation, of any
        order.
    """
    edge = (weight.shape[0] - 1, weight.shape[0] - 1)
    return lax.conv_general_dilated(
        x,
        weight[::-1, ::-1],
        (1, 1),
        (edge, edge),
        lhs_dilation=(2, 2),
        dimension_numbers=CONV_DIMS,
    )


def _down_conv(
    y: Float[Array, "N H W O"], weight: Float[Array, "k k I O"]
) -> Float[Array, "N h w I"]:
    """Applies the transpose of `up_conv`, a plain stride-2 convolution."""
    return lax.conv_general_dilated(
        y,
        weight.swapaxes(2, 3),
        (2, 2),
        "VALID",
        dimension_numbers=CONV_DIMS,
    )


def _up_conv_forward(x, weight):
    return up_conv(x, weight), (x, weight)


def _up_conv_backward(residuals, y_bar):
    def plain(x, weight, y_bar):
        # <up(x, w), y> = <x, down(y, w)>, so the weight's gradient is that of the
        # stride-2 convolution. By default, XLA:CPU would run a naive loop here.
        x_bar, weight_gradient = jax.vjp(lambda w: _down_conv(y_bar, w), weight)
        return x_bar, *weight_gradient(x)

    x, weight = residuals
    if x.shape[1] * x.shape[2] < conv_gradients.FEWEST_PIXELS:
        return plain(x, weight, y_bar)
    products = conv_gradients.up_conv_gradients
    return lax.platform_dependent(x, weight, y_bar, cpu=products, default=plain)


up_conv.defvjp(_up_conv_forward, _up_conv_backward)


def fir_filter(
    x: Float[Array, "N H W C"], pad: tuple[int, int], gain: float = 1.0
) -> Float[Array, "N h w C"]:
    """Smooths with FIR along height and width, as sums of shifted slices.

    Args:
        x: [N, H, W, C].
        pad: numbers of zeros before and after, on both axes.
        gain: factor on the result.

    Returns:
        [N, H + sum(pad) - 3, W + sum(pad) - 3, C].
    """
    taps = [tap * math.sqrt(gain) for tap in FIR]
    x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
    for axis in (1, 2):
        size = x.shape[axis] - len(taps) + 1
        x = sum_of(
            tap * lax.slice_in_dim(x, i, i + size, axis=axis)
            for i, tap in enumerate(taps)
        )
    return x


def upsample(x: Float[Array, "N H W C"]) -> Float[Array, "N 2*H 2*W C"]:
    """Doubles the size with the FIR filter: [N, H, W, C] -> [N, 2H, 2W, C]."""
    near, far = 2 * FIR[1], 2 * FIR[0]
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(4)])
        before = lax.slice_in_dim(padded, 0, size, axis=axis)
        after = lax.slice_in_dim(padded, 2, size + 2, axis=axis)
        # Two of an output pixel's four taps fall on pixels, the rest on zeros.
        pair = (near * x + far * before, near * x + far * after)
        shape = [2 * n if i == axis else n for i, n in enumerate(x.shape)]
        x = jnp.stack(pair, axis=axis + 1).reshape(shape)
    return x


def product(
    subscripts: str, x: Float[Array, "..."], weight: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Computes `jnp.einsum` in x's dtype, accumulated in the weight's dtype."""
    return jnp.einsum(
        subscripts, x, weight.astype(x.dtype), preferred_element_type=weight.dtype
    )


def modulated_conv(
    x: Float[Array, "N H W I"],
    weight: Float[Array, "k k I O"],
    style: Float[Array, "N I"],
    *,
    up: bool = False,
) -> Float[Array, "N h w O"]:
    """Convolves with a kernel scaled per example by `style` and normalised.

    The kernel is shared: the style scales the input activations, the normalisation
    (demodulation) the output activations. This equals using a kernel per example.

    Args:
        x: [N, H, W, I]; its dtype is the convolution's.
        weight: [k, k, I, O]; its overall scale cancels.
        style: [N, I].
        up: whether to double the size.

    Returns:
        [N, H, W, O], or [N, 2H, 2W, O], in the weight's dtype.
    """
    # Unrolled, because XLA:CPU's sum over leading axes takes 15 to 50 times as long.
    squares = (weight * weight).reshape(-1, *weight.shape[2:])  # [k * k, I, O]
    energy = sum_of(lax.split(squares, [1] * len(squares)))[0]  # [I, O]
    demodulation = lax.rsqrt(style * style @ energy + EPSILON)  # [N, O]
    dtype = x.dtype
    x = (x.astype(style.dtype) * style[:, None, None, :]).astype(dtype)
    weight = weight.astype(dtype)
    x = up_conv(x, weight) if up else conv(x, weight)
    if up:  # a gain of 4 compensates for the zeros that the stride inserts
        x = fir_filter(x.astype(demodulation.dtype), (1, 1), gain=4.0)
    return x.astype(demodulation.dtype) * demodulation[:, None, None, :]
