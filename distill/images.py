"""Image loss, image quality measures and image grids for the training scripts."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from guide_jax.faces.photos import to_uint8
from guide_jax.models.network import jitted


def image_loss(images: jax.Array, targets: jax.Array, lpips) -> tuple[jax.Array, dict]:
    """Computes L1 of pixels, L1 of neighbouring pixels' differences, and LPIPS.

    Args:
        images: `[N, H, W, 3]` in [-1, 1].
        targets: same shape and range.
        lpips: function (images, targets) -> distances.

    Returns:
        The weighted sum, and the mean of each term by name.
    """

    def differences(x):
        return x[:, 1:] - x[:, :-1], x[:, :, 1:] - x[:, :, :-1]

    l1 = jnp.abs(images - targets).mean()
    pairs = zip(differences(images), differences(targets), strict=True)
    edges = sum(jnp.abs(a - b).mean() for a, b in pairs)
    perceptual = lpips(images, targets).mean()
    terms = {"l1": l1, "edges": edges, "lpips": perceptual}
    return 2 * l1 + edges + 0.5 * perceptual, terms


def average(images: jax.Array, size: int) -> jax.Array:
    """Averages images `[N, H, W, 3]` down to `size` px, a divisor of H."""
    n, k = len(images), images.shape[1] // size
    return images.reshape(n, size, k, size, k, 3).mean((2, 4))


def likeness(lpips: nnx.Module, images: np.ndarray, generated: np.ndarray) -> dict:
    """Returns mean PSNR (dB) and LPIPS of image pairs `[N, H, W, 3]` in [-1, 1]."""
    distance = jitted(lpips, lambda lpips, a, b: lpips(a, b))
    count = max(1, len(images) // 20)
    pairs = zip(
        np.array_split(generated, count), np.array_split(images, count), strict=True
    )
    mse = ((generated - images) ** 2).mean((1, 2, 3))
    return {
        "psnr_db": float((10 * np.log10(4 / mse)).mean()),
        "lpips": float(np.concatenate([distance(*pair) for pair in pairs]).mean()),
    }


def save_grid(path: Path, rows: list[np.ndarray]):
    """Writes rows of images `[N, H, W, 3]` in [-1, 1] to a single PNG file."""
    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    Image.fromarray(to_uint8(grid)).save(path)
