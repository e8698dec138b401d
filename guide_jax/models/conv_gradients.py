"""Gradients of the convolutions in `ops` as matrix products, for CPUs.

XLA:CPU's own gradients of 3x3 convolutions with respect to the weight, and of
upsampling convolutions with respect to both arguments, take two to six times as long
(benchmarks/README.md). These place shifted copies side by side and multiply once. They
loop over the images of a batch, so the copies need no more memory than XLA's method.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from guide_jax.models.shapes import Array

# Smallest number of pixels (of the smaller side, when upsampling) for which this method
# is faster. Times in ms, XLA's and ours, on two cores at batch 5 and 512 channels:
# 8x8 10 and 13, 16x16 42 and 38, 32x32 200 and 123; upsampling 4x4 9 and 13, 8x8 26 and
# 23, 16x16 223 and 65.
FEWEST_PIXELS = 256


def weight_gradient(
    x: Float[Array, "N H W I"], y_bar: Float[Array, "N H W O"], size: int
) -> Float[Array, "k k I O"]:
    """Computes the gradient of `ops.conv` with respect to its weight.

    Args:
        x: the convolution's input, [N, H, W, I].
        y_bar: the gradient with respect to its result, [N, H, W, O].
        size: the kernel's side k.

    Returns:
        [k, k, I, O], accumulated in at least float32, in the arguments' dtype.
    """
    before = (size - 1) // 2

    def add(total, pair):
        x, y_bar = pair
        # x takes a tap's shift along W and y_bar its shift along H, so 2k copies and
        # one product cover all k * k taps.
        x = jnp.concatenate([_shifted(x, 1, j - before) for j in range(size)], -1)
        y_bar = [_shifted(y_bar, 0, before - i) for i in range(size)]
        return total + _over_pixels(x, jnp.concatenate(y_bar, -1)), None

    inputs, outputs = x.shape[-1], y_bar.shape[-1]
    zeros = jnp.zeros((size * inputs, size * outputs), _sum_dtype(x))
    total, _ = lax.scan(add, zeros, (x, y_bar))
    total = total.reshape(size, inputs, size, outputs)
    return total.transpose(2, 0, 1, 3).astype(x.dtype)


def up_conv_gradients(
    x: Float[Array, "N H W I"],
    weight: Float[Array, "k k I O"],
    y_bar: Float[Array, "N 2*H+k-2 2*W+k-2 O"],
) -> tuple[Float[Array, "N H W I"], Float[Array, "k k I O"]]:
    """Computes the gradients of `ops.up_conv(x, weight)` from its result's."""
    size, _, inputs, outputs = weight.shape
    H, W = x.shape[1:3]
    taps = [(i, j) for i in range(size) for j in range(size)]
    matrix = weight.swapaxes(2, 3).reshape(-1, inputs)  # [k * k * O, I]

    def add(total, pair):
        x, y_bar = pair
        # The gradient at each tap's output pixel, [H, W, k * k * O]; both products
        # use it.
        gathered = [
            lax.slice(
                y_bar, (i, j, 0), (i + 2 * H - 1, j + 2 * W - 1, outputs), (2, 2, 1)
            )
            for i, j in taps
        ]
        gathered = jnp.concatenate(gathered, -1)
        x_bar = jnp.dot(gathered, matrix, preferred_element_type=total.dtype)
        return total + _over_pixels(x, gathered), x_bar.astype(x.dtype)

    zeros = jnp.zeros((inputs, len(taps) * outputs), _sum_dtype(x))
    total, x_bar = lax.scan(add, zeros, (x, y_bar))
    total = total.reshape(inputs, size, size, outputs).transpose(1, 2, 0, 3)
    return x_bar, total.astype(weight.dtype)


def _shifted(x: Float[Array, "H W C"], axis: int, by: int) -> Float[Array, "H W C"]:
    """Moves pixel i + `by` to i along an axis and fills with zeros."""
    edges = [(-by, by, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _over_pixels(
    a: Float[Array, "H W A"], b: Float[Array, "H W B"]
) -> Float[Array, "A B"]:
    """Contracts [H, W, A] and [H, W, B] over the pixels to [A, B]."""
    pixels = ((0, 1), (0, 1)), ((), ())
    return lax.dot_general(a, b, pixels, preferred_element_type=_sum_dtype(a))


def _sum_dtype(x: Float[Array, "..."]) -> np.dtype:
    # NumPy's function, because JAX's raises under strict promotion.
    return np.promote_types(x.dtype, np.float32)
