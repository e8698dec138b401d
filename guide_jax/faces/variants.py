"""Altered copies of an aligned photo, which show the same person."""

import numpy as np
from PIL import Image

from guide_jax.faces.photos import to_uint8

CLOSER = 0.05  # fraction of the side that the closer copy leaves out at each edge
DARKER, WARMER = (
    0.75,
    (1.08, 1.0, 0.9),
)  # factors on brightness, and on red, green, blue


def _closer(photo: np.ndarray) -> np.ndarray:
    side = photo.shape[1]
    edge = round(CLOSER * side)
    picture = Image.fromarray(to_uint8(photo))
    part = picture.crop((edge, edge, side - edge, side - edge))
    part = part.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(part, np.float32) / 127.5 - 1


def _scaled(photo: np.ndarray, factors: float | tuple[float, ...]) -> np.ndarray:
    return ((photo + 1) * np.asarray(factors, np.float32) - 1).clip(-1, 1)


MIRRORED = 0  # index of the mirrored copy
ALTERATIONS = (
    lambda photo: photo[:, ::-1],
    _closer,
    lambda photo: _scaled(photo, DARKER),
    lambda photo: _scaled(photo, WARMER),
)


def variants(photo: np.ndarray, count: int) -> np.ndarray:
    """Returns altered copies of a photo.

    Args:
        photo: `[1, H, H, 3]` float32 in [-1, 1].
        count: number of copies, in the order mirrored, closer, darker, warmer.

    Returns:
        `[count, H, H, 3]` float32 in [-1, 1].
    """
    copies = [alter(photo[0]) for alter in ALTERATIONS[:count]]
    return np.reshape(np.array(copies, np.float32), (len(copies), *photo.shape[1:]))
