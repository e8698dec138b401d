"""What the convolutional generators share: FIR resampling, modulation, activations.

Images and activations are NHWC, kernels HWIO. Every function keeps the dtype it is
given: float32 in use, float64 where tests compare gradients. A layer computes in its
input's dtype, which may be bfloat16 under float32 parameters: convolutions then read
and write bfloat16 and sum in float32, and all between them is float32.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from guide_jax.models import conv_gradients

CONV_DIMS = ("NHWC", "HWIO", "NHWC")
# The one smoothing filter of StyleGAN2, [1, 3, 3, 1] along either axis, with sum 1.
FIR = (0.125, 0.375, 0.375, 0.125)
LEAKY_SLOPE = 0.2
# The published code adds this to sums of squares before it divides by their root.
EPSILON = 1e-8


class Buffer(nnx.Variable):
    """An array that belongs to a network and is not trained: stored noise, w_avg."""


class Linear(nnx.Module):
    """A dense layer with an equalised learning rate: the scale is applied when it runs.

    Args:
        fan_in: length of an input vector.
        fan_out: length of an output vector.
        lr_multiplier: factor on weight and bias; weights start at 1 / lr_multiplier.
        bias_init: what the bias starts from.
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

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., fan_in] to [..., fan_out]."""
        weight, bias = self.weight[...], self.bias[...]
        gain = self.lr_multiplier / math.sqrt(weight.shape[0])
        return x @ weight * gain + bias * self.lr_multiplier


def normal(rngs: nnx.Rngs, shape: tuple[int, ...]) -> jax.Array:
    """Returns float32 draws of a standard normal distribution."""
    return jax.random.normal(rngs.params(), shape, jnp.float32)


def normalize_2nd_moment(x: jax.Array) -> jax.Array:
    """Scales each vector of [..., Z] so that its mean square is 1."""
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON)


def leaky_relu(
    x: jax.Array, gain: float = math.sqrt(2), clamp: float | None = None
) -> jax.Array:
    """Returns leaky ReLU (slope 0.2) times `gain`, limited to [-clamp, clamp]."""
    y = jnp.where(x > 0, x, LEAKY_SLOPE * x) * gain
    return y if clamp is None else jnp.clip(y, -clamp, clamp)


@jax.custom_vjp
def conv(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Convolves at stride 1 and keeps the size: [N, H, W, I], [k, k, I, O] -> O.

    Differentiable in reverse only (as often as wanted).
    """
    return _plain_conv(x, weight)


def _plain_conv(x: jax.Array, weight: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x, weight, (1, 1), "SAME", dimension_numbers=CONV_DIMS
    )


def _conv_forward(x: jax.Array, weight: jax.Array):
    return conv(x, weight), (x, weight)


def _conv_backward(residuals, y_bar: jax.Array):
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
def up_conv(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Convolves transposed at stride 2, without padding.

    Args:
        x: [N, H, W, I].
        weight: [k, k, I, O].

    Returns:
        [N, 2H + k - 2, 2W + k - 2, O]; input pixel i adds `x[i] * weight[j]` to output
        pixel 2i + j. Differentiable in reverse only (as often as wanted).
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


def _down_conv(y: jax.Array, weight: jax.Array) -> jax.Array:
    """The transpose of `up_conv` in its input: a plain stride-2 convolution."""
    return lax.conv_general_dilated(
        y,
        weight.swapaxes(2, 3),
        (2, 2),
        "VALID",
        dimension_numbers=CONV_DIMS,
    )


def _up_conv_forward(x: jax.Array, weight: jax.Array):
    return up_conv(x, weight), (x, weight)


def _up_conv_backward(residuals, y_bar: jax.Array):
    def plain(x, weight, y_bar):
        # <up(x, w), y> = <x, down(y, w)>, so the weight gradient is that of the
        # stride-2 convolution. Left to itself, XLA:CPU takes a naive loop here.
        x_bar, weight_gradient = jax.vjp(lambda w: _down_conv(y_bar, w), weight)
        return x_bar, *weight_gradient(x)

    x, weight = residuals
    if x.shape[1] * x.shape[2] < conv_gradients.FEWEST_PIXELS:
        return plain(x, weight, y_bar)
    products = conv_gradients.up_conv_gradients
    return lax.platform_dependent(x, weight, y_bar, cpu=products, default=plain)


up_conv.defvjp(_up_conv_forward, _up_conv_backward)


def fir_filter(x: jax.Array, pad: tuple[int, int], gain: float = 1.0) -> jax.Array:
    """Smooths with FIR along height and width, as shifted sums.

    Args:
        x: [N, H, W, C].
        pad: zeros before and after, on both axes.
        gain: factor on the result.

    Returns:
        [N, H + sum(pad) - 3, W + sum(pad) - 3, C].
    """
    taps = [tap * math.sqrt(gain) for tap in FIR]
    x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
    for axis in (1, 2):
        size = x.shape[axis] - len(taps) + 1
        x = sum(
            tap * lax.slice_in_dim(x, i, i + size, axis=axis)
            for i, tap in enumerate(taps)
        )
    return x


def upsample(x: jax.Array) -> jax.Array:
    """Doubles the size through FIR: [N, H, W, C] -> [N, 2H, 2W, C]."""
    near, far = 2 * FIR[1], 2 * FIR[0]
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(4)])
        before = lax.slice_in_dim(padded, 0, size, axis=axis)
        after = lax.slice_in_dim(padded, 2, size + 2, axis=axis)
        # An output pixel sees two of the four taps; the others fall on zeros.
        pair = (near * x + far * before, near * x + far * after)
        shape = [2 * n if i == axis else n for i, n in enumerate(x.shape)]
        x = jnp.stack(pair, axis=axis + 1).reshape(shape)
    return x


def product(subscripts: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """Multiplies as `jnp.einsum` in x's dtype; the sums have the weight's."""
    return jnp.einsum(
        subscripts, x, weight.astype(x.dtype), preferred_element_type=weight.dtype
    )


def modulated_conv(
    x: jax.Array, weight: jax.Array, style: jax.Array, *, up: bool = False
) -> jax.Array:
    """Convolves with a kernel scaled per example by `style`, then normalised.

    The kernel is shared: the style scales the activations that go in, the normalisation
    (demodulation) those that come out. This equals a kernel for every example.

    Args:
        x: [N, H, W, I]; the convolution runs in its dtype.
        weight: [k, k, I, O]; its scale cancels.
        style: [N, I].
        up: whether to double the size.

    Returns:
        [N, H, W, O], or [N, 2H, 2W, O], of the weight's dtype.
    """
    # By hand, because XLA:CPU's own sum over leading axes takes 15 to 50 times as long.
    squares = (weight * weight).reshape(-1, *weight.shape[2:])  # [k * k, I, O]
    energy = sum(lax.split(squares, [1] * len(squares)))[0]  # [I, O]
    demodulation = lax.rsqrt(style * style @ energy + EPSILON)  # [N, O]
    dtype = x.dtype
    x, weight = (x * style[:, None, None, :]).astype(dtype), weight.astype(dtype)
    x = up_conv(x, weight) if up else conv(x, weight)
    if up:  # 4 makes up for the zeros that the stride puts between pixels
        x = fir_filter(x.astype(demodulation.dtype), (1, 1), gain=4.0)
    return x * demodulation[:, None, None, :]
