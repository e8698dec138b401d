"""Gradients of `ops`' convolutions as matrix products, for CPUs.

XLA:CPU's own gradients of 3x3 convolutions in their weights, and of up-sampling ones in
both arguments, take two to six times as long as these (benchmarks/README.md), which
lay shifted copies side by side and multiply once. They take one image of a batch after
the other, in a loop: the copies then need no more memory than XLA's own way.
"""

import jax
import jax.numpy as jnp
from jax import lax

# Pixels of an image, of the smaller side, from which this is the faster way. Two cores
# at batch 5, 512 channels, ms: 8x8 10 for XLA's and 13, 16x16 42 and 38, 32x32 200 and
# 123; up-sampling 4x4 9 and 13, 8x8 26 and 23, 16x16 223 and 65.
FEWEST_PIXELS = 256


def weight_gradient(x: jax.Array, y_bar: jax.Array, size: int) -> jax.Array:
    """The gradient of a convolution of stride 1 that keeps the size, in its weight.

    Args:
        x: what was convolved, [N, H, W, I].
        y_bar: the gradient in the result, [N, H, W, O].
        size: the kernel's side k.

    Returns:
        [k, k, I, O], summed in float32 at least, and of the arguments' dtype.
    """
    before = (size - 1) // 2

    def add(total, pair):
        x, y_bar = pair
        # Of a tap's two shifts, x takes the one along W and y_bar the one along H, so
        # that 2k copies and one product serve k * k taps.
        x = jnp.concatenate([_shifted(x, 1, j - before) for j in range(size)], -1)
        y_bar = [_shifted(y_bar, 0, before - i) for i in range(size)]
        return total + _over_pixels(x, jnp.concatenate(y_bar, -1)), None

    inputs, outputs = x.shape[-1], y_bar.shape[-1]
    zeros = jnp.zeros((size * inputs, size * outputs), _sum_dtype(x))
    total, _ = lax.scan(add, zeros, (x, y_bar))
    total = total.reshape(size, inputs, size, outputs)
    return total.transpose(2, 0, 1, 3).astype(x.dtype)


def up_conv_gradients(
    x: jax.Array, weight: jax.Array, y_bar: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of `ops.up_conv(x, weight)`, given that in its result."""
    size, _, inputs, outputs = weight.shape
    H, W = x.shape[1:3]
    taps = [(i, j) for i in range(size) for j in range(size)]
    matrix = weight.swapaxes(2, 3).reshape(-1, inputs)  # [k * k * O, I]

    def add(total, pair):
        x, y_bar = pair
        # What each tap made of each pixel, [H, W, k * k * O]: both gradients need it.
        made = [
            lax.slice(
                y_bar, (i, j, 0), (i + 2 * H - 1, j + 2 * W - 1, outputs), (2, 2, 1)
            )
            for i, j in taps
        ]
        made = jnp.concatenate(made, -1)
        x_bar = jnp.dot(made, matrix, preferred_element_type=total.dtype)
        return total + _over_pixels(x, made), x_bar.astype(x.dtype)

    zeros = jnp.zeros((inputs, len(taps) * outputs), _sum_dtype(x))
    total, x_bar = lax.scan(add, zeros, (x, y_bar))
    total = total.reshape(inputs, size, size, outputs).transpose(1, 2, 0, 3)
    return x_bar, total.astype(weight.dtype)


def _shifted(x: jax.Array, axis: int, by: int) -> jax.Array:
    """Moves pixel i + `by` to i along an axis; zeros come in."""
    edges = [(-by, by, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _over_pixels(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiplies [H, W, A] by [H, W, B] to [A, B]."""
    pixels = ((0, 1), (0, 1)), ((), ())
    return lax.dot_general(a, b, pixels, preferred_element_type=_sum_dtype(a))


def _sum_dtype(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
