"""Reads photos, and converts images to pixels."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from guide_jax.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def load_photo(path: str | Path, size: int) -> np.ndarray:
    """Reads an aligned photo, crops its central square and resizes it.

    Args:
        path: an image file; see `read_image`.
        size: side of the result in pixels.

    Returns:
        `[1, size, size, 3]`, float32 RGB in [-1, 1].

    Raises:
        InputError: as for `read_image`.
    """
    return fit(read_image(path), size)


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Crops an image to its central square and resizes it.

    Args:
        image: `[H, W, 3]` uint8.
        size: side of the result in pixels.

    Returns:
        `[1, size, size, 3]`, float32 in [-1, 1].
    """
    square = ImageOps.fit(
        Image.fromarray(image), (size, size), Image.Resampling.LANCZOS
    )
    return np.asarray(square, np.float32)[None] / 127.5 - 1


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image file as 8-bit RGB.

    The EXIF orientation is applied. Grey, palette and CMYK images are converted to RGB,
    16-bit values to 8 bits, and transparent pixels are composited on white. Colour
    profiles are not applied. For animations, the first frame is used.

    Args:
        path: a JPEG, PNG or WebP file, or another format that Pillow reads.

    Returns:
        `[H, W, 3]` uint8 RGB.

    Raises:
        InputError: the file does not exist, is not an image, is damaged or too large,
            or has an unknown value range (32-bit grey).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such photo; check --config.source.image")
    try:
        with Image.open(path) as opened:
            mode = opened.mode
            image = _rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise InputError(
            f"{path}: not a readable image; use a JPEG, PNG or WebP file"
        ) from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: image too large ({error})") from None
    # Pillow's decoders may raise any exception on damaged files.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: damaged image ({reason})") from None
    if image is None:
        raise InputError(
            f"{path}: unsupported pixel mode {mode!r} (unknown value range); save it"
            " with 8 or 16 bits"
        )
    return np.asarray(image)


def _rgb(image: Image.Image) -> Image.Image | None:
    """Converts an image to RGB; returns None if its value range is unknown."""
    if image.mode in ("I", "F"):
        return None
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float64) / 257  # 65535 / 255
        image = Image.fromarray(np.rint(grey).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def list_photos(folder: str | Path) -> list[Path]:
    """Lists the photos in a folder and its sub-folders, by suffix.

    Hidden files and folders are skipped, because operating systems keep metadata there.

    Args:
        folder: the folder to search.

    Returns:
        The paths, sorted.

    Raises:
        InputError: the folder does not exist or contains no photos.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of photos")
    paths = [x for x in visible_files(folder) if x.suffix.lower() in SUFFIXES]
    if not paths:
        raise InputError(f"{folder}: no photos in it ({', '.join(SUFFIXES)})")
    return paths


def visible_files(folder: Path) -> list[Path]:
    """Returns the non-hidden files in a folder and its sub-folders, sorted."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Converts images in [-1, 1] of any shape to rounded uint8 pixels in [0, 255]."""
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
