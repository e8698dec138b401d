"""Reads photos; turns seeds into z and images into pixels."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from guide_jax.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def load_photo(path: str | Path, size: int) -> np.ndarray:
    """Reads one aligned photo.

    It is turned as its EXIF says, cut to the square in its middle and resized.

    Args:
        path: an image file; see `read_image`.
        size: side of the result in pixels.

    Returns:
        `[1, size, size, 3]`, float32 RGB in [-1, 1].

    Raises:
        InputError: there is no such file, or it is no image, or a damaged one.
    """
    return fit(read_image(path), size)


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Cuts a picture to the square in its middle and resizes it.

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
    """Reads a picture as it is meant to be seen.

    It is turned as its EXIF says. Grey, palette and CMYK pictures become RGB, 16 bits
    become 8, and what is transparent is shown on white, as on a page. Colour
    profiles are not applied. Of an animation it is the first picture.

    Args:
        path: a JPEG, PNG or WebP file, or of another kind that Pillow reads.

    Returns:
        `[H, W, 3]` uint8 RGB.

    Raises:
        InputError: there is no such file, or it is no image, a damaged or huge one, or
            has no known range of brightness (32 bits for a pixel's grey).
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
            f"{path}: not an image that can be read; give a JPEG, PNG or WebP file"
        ) from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: too large an image ({error})") from None
    # Pillow's decoders raise anything on damaged files.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: a damaged image ({reason})") from None
    if image is None:
        raise InputError(
            f"{path}: its pixels are of kind {mode!r}, whose white is not known; save"
            " it with 8 or 16 bits"
        )
    return np.asarray(image)


def _rgb(image: Image.Image) -> Image.Image | None:
    """Returns the picture as RGB, None if its range isn't known."""
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
    """Finds the photos in a folder and in those within it, by their suffixes.

    Names that begin with a dot are left out: systems keep notes under them.

    Returns:
        The paths, sorted by their text.

    Raises:
        InputError: there is no such folder, or no photo in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of photos")
    found = [x for x in visible_files(folder) if x.suffix.lower() in SUFFIXES]
    if not found:
        raise InputError(f"{folder}: no photos in it ({', '.join(SUFFIXES)})")
    return found


def visible_files(folder: Path) -> list[Path]:
    """Returns the files in a folder and in those within it, sorted, no hidden ones."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def z_of_seed(seed: int, z_dim: int) -> np.ndarray:
    """Returns the z `[1, Z]`, float32, that a seed stands for, on any machine."""
    return np.random.default_rng(seed).standard_normal((1, z_dim)).astype(np.float32)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Turns images in [-1, 1] into rounded uint8 pixels, any shape."""
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
