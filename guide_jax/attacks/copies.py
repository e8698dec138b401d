"""Photographs of a picture: what the same face looks like in another file."""

import io

import numpy as np
from PIL import Image, ImageFilter

from guide_jax.faces.photos import to_uint8

CROP = 0.02  # largest part of the side that a crop leaves out
COLOUR, LIGHT = 0.08, 0.2  # largest relative changes of each colour and of brightness
BLUR = 0.004  # largest standard deviation of the blur, as a fraction of the side
QUALITY = 60, 95  # of JPEG


def rephotographed(image: np.ndarray, seed: int) -> np.ndarray:
    """Returns a copy with a random crop, colours, blur and JPEG, or its mirror image.

    Args:
        image: `[H, H, 3]` float32 in [-1, 1].
        seed: seed of the draw; for odd seeds the copy is mirrored.

    Returns:
        `[H, H, 3]` float32 in [-1, 1].
    """
    rng, side = np.random.default_rng(seed), image.shape[1]
    if seed % 2:
        image = image[:, ::-1]
    gain = rng.uniform(1 - COLOUR, 1 + COLOUR, 3) * rng.uniform(1 - LIGHT, 1 + LIGHT)
    image = (image + 1) * gain.astype(np.float32) - 1
    picture = Image.fromarray(to_uint8(image))
    width = side - rng.uniform(0, CROP * side)
    left, top = rng.uniform(0, side - width, 2)
    box = (left, top, left + width, top + width)
    picture = picture.resize((side, side), Image.Resampling.BICUBIC, box)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, BLUR * side)))
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=int(rng.integers(*QUALITY)))
    return np.asarray(Image.open(stored), np.float32) / 127.5 - 1


def grey(images: np.ndarray) -> np.ndarray:
    """Returns images `[N, H, W, 3]` without colour, in the same shape."""
    luma = images @ np.array([0.299, 0.587, 0.114], images.dtype)
    return np.repeat(luma[..., None], 3, axis=3)
