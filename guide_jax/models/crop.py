"""Linear resampling of photos: pooling, and the published identity loss's crop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# The published identity loss brings faces to 256 pixels and takes this part of them.
FACE_SIZE = 256
FACE_ROWS = (35, 223)
FACE_COLUMNS = (32, 220)


def identity_crop(images: jax.Array, size: int = 112) -> jax.Array:
    """Cuts the face out of aligned photos, as the published identity loss does.

    That is a bilinear resize to 256 x 256 (without antialiasing), the rows 35:223 and
    columns 32:220 of it, and an average pool to the encoder's input. All of it is
    linear and separable, so it is one small matrix product for each axis.

    Args:
        images: [N, H, W, 3].
        size: side of the result.

    Returns:
        [N, size, size, 3], of the images' dtype and range.
    """
    _, H, W, _ = images.shape
    rows = crop_matrix(H, size, *FACE_ROWS)
    columns = crop_matrix(W, size, *FACE_COLUMNS)
    return _resample(images, rows, columns)


def resize(images: jax.Array, size: int) -> jax.Array:
    """Resizes to a square, bilinearly and without antialiasing.

    Args:
        images: [N, H, W, C].
        size: side of the result; images of that size come back as they are.

    Returns:
        [N, size, size, C], of the images' dtype and range.
    """
    _, H, W, _ = images.shape
    if H == W == size:
        return images
    return _resample(images, bilinear_matrix(H, size), bilinear_matrix(W, size))


def _resample(images: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """Applies a matrix along each axis: [S, H] and [T, W] give [N, S, T, C]."""
    N, H, W, C = images.shape
    rows, columns = (jnp.asarray(matrix, images.dtype) for matrix in (rows, columns))
    x = images.reshape(N, H, W * C)
    x = jnp.einsum("sh,nhk->nsk", rows, x, precision="highest")
    x = x.reshape(N, len(rows), W, C)
    return jnp.einsum("tw,nswc->nstc", columns, x, precision="highest")


@functools.cache
def crop_matrix(length: int, size: int, start: int, stop: int) -> np.ndarray:
    """Returns the [size, length] float64 matrix of `identity_crop` along one axis."""
    face = bilinear_matrix(length, FACE_SIZE)[start:stop]  # [stop - start, length]
    matrix = pool_matrix(stop - start, size) @ face
    matrix.setflags(write=False)  # the cache hands the same array to everybody
    return matrix


def bilinear_matrix(length: int, size: int) -> np.ndarray:
    """Returns bilinear resizing along one axis, [size, length] float64.

    Pixel centres lie at halves and edges repeat. There is no antialiasing, so shrinking
    by 4 reads two pixels of four: PyTorch's `interpolate` does so, and the published
    numbers depend on it.
    """
    centres = (np.arange(size) + 0.5) * length / size - 0.5
    centres = centres.clip(0, length - 1)
    first = np.floor(centres).astype(int)
    second = np.minimum(first + 1, length - 1)
    rows = np.arange(size)
    matrix = np.zeros((size, length))
    matrix[rows, first] += 1 - (centres - first)
    matrix[rows, second] += centres - first
    return matrix


def pool_matrix(length: int, size: int) -> np.ndarray:
    """Returns adaptive average pooling along one axis, [size, length] float64.

    Window i reaches from floor(i * length / size) to ceil((i + 1) * length / size), so
    windows overlap where size doesn't divide length, and repeat where it is larger.
    """
    matrix = np.zeros((size, length))
    for i in range(size):
        first, last = i * length // size, -(-(i + 1) * length // size)
        matrix[i, first:last] = 1 / (last - first)
    return matrix
