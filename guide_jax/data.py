"""Reads photos; turns seeds into z and images into pixels."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from guide_jax.errors import InputError


def load_photo(path: str | Path, size: int) -> np.ndarray:
    """Reads one aligned photo.

    It is turned as its EXIF says, cut to the square in its middle and resized.

    Args:
        path: an image file of any kind that Pillow reads.
        size: side of the result in pixels.

    Returns:
        `[1, size, size, 3]`, float32 RGB in [-1, 1].

    Raises:
        InputError: there is no such file, or it is no image, or a damaged one.
    """
    image = ImageOps.fit(read_photo(path), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(image, np.float32)[None] / 127.5 - 1


def read_photo(path: str | Path) -> Image.Image:
    """Reads a photo at its own size, RGB, turned as its EXIF says.

    Raises:
        InputError: as `load_photo`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such photo; check --config.source.image")
    try:
        with Image.open(path) as opened:
            mode = opened.mode
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except UnidentifiedImageError:
        raise InputError(
            f"{path}: not an image that can be read; give a JPEG, PNG or WebP file"
        ) from None
    # Pillow's decoders raise anything on damaged files.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: a damaged image ({reason})") from None
    if mode.startswith(("I", "F")):  # Pillow would clip them to white
        raise InputError(f"{path}: more than 8 bits for a grey pixel; save it with 8")
    return image


def z_of_seed(seed: int, z_dim: int) -> np.ndarray:
    """Returns the z `[1, Z]`, float32, that a seed stands for, on any machine."""
    return np.random.default_rng(seed).standard_normal((1, z_dim)).astype(np.float32)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Turns images in [-1, 1] into rounded uint8 pixels, any shape."""
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
