"""Linear resampling of images: pooling, resizing and the identity loss's crop."""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, Int64

from guide_jax.models.shapes import Array

# The published identity loss resizes faces to 256 pixels and crops this part.
FACE_SIZE = 256
FACE_ROWS = (35, 223)
FACE_COLUMNS = (32, 220)

JaxOrNumPy = TypeVar("JaxOrNumPy", jax.Array, np.ndarray)


def identity_crop(
    images: Float[Array, "N H W C"], size: int = 112
) -> Float[Array, "N S S C"]:
    """Crops the face from aligned images, as the published identity loss does.

    The published code resizes bilinearly to 256 x 256 (without antialiasing), crops
    rows 35:223 and columns 32:220, and average-pools to the encoder's input. All of
    this is linear and separable, so it is a small matrix product per axis.

    Args:
        images: [N, H, W, 3].
        size: side of the result.

    Returns:
        [N, size, size, 3], in the images' dtype and range.
    """
    N, H, W, C = images.shape
    rows = jnp.asarray(crop_matrix(H, size, *FACE_ROWS), images.dtype)
    columns = jnp.asarray(crop_matrix(W, size, *FACE_COLUMNS), images.dtype)
    x = images.reshape(N, H, W * C)
    x = jnp.einsum("sh,nhk->nsk", rows, x, precision="highest")
    x = x.reshape(N, size, W, C)
    return jnp.einsum("tw,nswc->nstc", columns, x, precision="highest")


def average_pool(images: Float[Array, "N H W C"], size: int) -> Float[Array, "N S S C"]:
    """Averages images [N, H, W, C] of any size to [N, S, S, C] with `pool_matrix`."""
    if images.shape[1:3] == (size, size):
        return images
    rows, columns = (
        jnp.asarray(pool_matrix(n, size), images.dtype) for n in images.shape[1:3]
    )
    return jnp.einsum("sh,nhwc,tw->nstc", rows, images, columns, precision="highest")


def resize(
    images: Float[JaxOrNumPy, "N H W C"], size: int
) -> Float[JaxOrNumPy, "N S S C"]:
    """Resizes to a square, as `bilinear_matrix` does, by gathering two pixels per axis.

    At 1024 pixels, this takes a third of the time of the matrix products.

    Args:
        images: [N, H, W, C], floating. NumPy arrays are resized by NumPy, without
            compilation.
        size: side of the result; images of this size are returned unchanged.

    Returns:
        [N, size, size, C], in the images' dtype and range.
    """
    _, H, W, _ = images.shape
    if H == W == size:
        return images
    for axis, length in ((1, H), (2, W)):
        first, second, share = bilinear_taps(length, size)
        share = np.expand_dims(share, (0, 3 - axis, 3)).astype(images.dtype)
        near, far = images.take(first, axis), images.take(second, axis)
        images = near * (1 - share) + far * share
    return images


@functools.cache
def crop_matrix(
    length: int, size: int, start: int, stop: int
) -> Float64[np.ndarray, "size length"]:
    """Returns `identity_crop`'s [size, length] float64 matrix along one axis."""
    face = bilinear_matrix(length, FACE_SIZE)[start:stop]  # [stop - start, length]
    matrix = pool_matrix(stop - start, size) @ face
    matrix.setflags(write=False)  # the cache returns the same array to every caller
    return matrix


def bilinear_matrix(
    length: int, size: int, align_corners: bool = False
) -> Float64[np.ndarray, "size length"]:
    """Returns the matrix of bilinear resizing along one axis, [size, length] float64.

    Pixel centres lie at half-integers and edges repeat. With `align_corners`, the first
    and last pixels keep their positions and the rest are spread evenly between them.
    There is no antialiasing, so shrinking by 4 reads two of every four pixels, as in
    PyTorch's `interpolate`; the published results depend on this.
    """
    first, second, share = bilinear_taps(length, size, align_corners)
    rows = np.arange(size)
    matrix = np.zeros((size, length))
    matrix[rows, first] += 1 - share
    matrix[rows, second] += share
    return matrix


def bilinear_taps(
    length: int, size: int, align_corners: bool = False
) -> tuple[
    Int64[np.ndarray, " size"],
    Int64[np.ndarray, " size"],
    Float64[np.ndarray, " size"],
]:
    """Returns the indices of the pixels that are blended, and the second's weight.

    Returns:
        [size] int64, [size] int64, and [size] float64 in [0, 1).
    """
    if align_corners:
        centres = np.linspace(0, length - 1, size)
    else:
        centres = (np.arange(size) + 0.5) * length / size - 0.5
        centres = centres.clip(0, length - 1)
    first = np.floor(centres).astype(np.int64)
    return first, np.minimum(first + 1, length - 1), centres - first


def pool_matrix(length: int, size: int) -> Float64[np.ndarray, "size length"]:
    """Returns the matrix of adaptive average pooling along one axis, float64.

    The matrix is [size, length]. Window i spans floor(i * length / size) to
    ceil((i + 1) * length / size), so windows overlap if size does not divide length and
    repeat if size is larger.
    """
    matrix = np.zeros((size, length))
    for i in range(size):
        first, last = i * length // size, -(-(i + 1) * length // size)
        matrix[i, first:last] = 1 / (last - first)
    return matrix
