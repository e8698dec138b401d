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
    N, H, W, C = images.shape
    rows = jnp.asarray(crop_matrix(H, size, *FACE_ROWS), images.dtype)
    columns = jnp.asarray(crop_matrix(W, size, *FACE_COLUMNS), images.dtype)
    x = images.reshape(N, H, W * C)
    x = jnp.einsum("sh,nhk->nsk", rows, x, precision="highest")
    x = x.reshape(N, size, W, C)
    return jnp.einsum("tw,nswc->nstc", columns, x, precision="highest")


def average_pool(images: jax.Array, size: int) -> jax.Array:
    """Averages images [N, H, W, C] of any size to [N, size, size, C]: `pool_matrix`."""
    if images.shape[1:3] == (size, size):
        return images
    rows, columns = (
        jnp.asarray(pool_matrix(n, size), images.dtype) for n in images.shape[1:3]
    )
    return jnp.einsum("sh,nhwc,tw->nstc", rows, images, columns, precision="highest")


def resize(images: jax.Array | np.ndarray, size: int) -> jax.Array | np.ndarray:
    """Resizes to a square as `bilinear_matrix` does, by reading two pixels for each.

    At 1024 pixels that takes a third of the time of the matrix products.

    Args:
        images: [N, H, W, C], floating; of NumPy, NumPy does it and nothing is compiled.
        size: side of the result; images of that size come back as they are.

    Returns:
        [N, size, size, C], of the images' dtype and range.
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
def crop_matrix(length: int, size: int, start: int, stop: int) -> np.ndarray:
    """Returns the [size, length] float64 matrix of `identity_crop` along one axis."""
    face = bilinear_matrix(length, FACE_SIZE)[start:stop]  # [stop - start, length]
    matrix = pool_matrix(stop - start, size) @ face
    matrix.setflags(write=False)  # the cache hands the same array to everybody
    return matrix


def bilinear_matrix(length: int, size: int, align_corners: bool = False) -> np.ndarray:
    """Returns bilinear resizing along one axis, [size, length] float64.

    Pixel centres lie at halves and edges repeat; with `align_corners` the first pixel
    and the last stay where they are, and the others spread evenly between. There is no
    antialiasing, so shrinking by 4 reads two pixels of four: PyTorch's `interpolate`
    does so, and the published numbers depend on it.
    """
    first, second, share = bilinear_taps(length, size, align_corners)
    rows = np.arange(size)
    matrix = np.zeros((size, length))
    matrix[rows, first] += 1 - share
    matrix[rows, second] += share
    return matrix


def bilinear_taps(
    length: int, size: int, align_corners: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns which two pixels `bilinear_matrix` reads, and the second's share.

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
