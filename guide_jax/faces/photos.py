"""Reads photos, and converts images to pixels."""

import functools
import math
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from guide_jax.errors import InputError, is_about_a_file

# Larger images are refused: whole, they take a gigabyte. Phones make 200 megapixels.
MAX_PIXELS = 2**28
# Larger images are reduced to this size, because detection takes 24 bytes a pixel.
LARGE = 2**25
# Formats in Pillow's list that are no photos: it can only store these, or reads them
# with another program (Ghostscript).
NO_PHOTOS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# The types of ISO media files that hold HEVC images.
HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what undoes it
SAVE_AGAIN = "if another program shows it, save it there as JPEG or PNG"

# Pillow's limits are lower: 179 megapixels, and 1 MiB for each text in a PNG file, in
# which editors keep their history.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MiB for all texts


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
    16-bit values to 8 bits, and transparent pixels are composited on white. 32-bit grey
    (integers and floats) is scaled so that its smallest value becomes black and its
    largest white. Colour profiles are not applied. For animations, the first frame is
    used. Images above `LARGE` pixels are reduced to that.

    Args:
        path: an image in any format that Pillow reads, with pillow-heif also HEIC.

    Returns:
        `[H, W, 3]` uint8 RGB.

    Raises:
        InputError: the file cannot be read, is not an image, is damaged or has more
            than `MAX_PIXELS` pixels.
        MemoryError: there is not enough memory.
    """
    path = Path(path)
    try:
        found = path.is_file()
    except OSError as error:  # for example, because a name is too long
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not found:
        raise InputError(f"{path}: no such photo; check --config.source.image")
    try:
        with Image.open(path, formats=_formats()) as opened:
            if math.prod(opened.size) > MAX_PIXELS:
                raise Image.DecompressionBombError
            return np.asarray(_rgb(opened))
    except UnidentifiedImageError:
        raise InputError(f"{path}: {_why_unknown(path)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(
            f"{path}: image too large; at most {MAX_PIXELS // 10**6} megapixels are"
            " read, so save it smaller"
        ) from None
    # Pillow's decoders may raise any exception on damaged files.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        if not is_about_a_file(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: damaged image ({reason}); {SAVE_AGAIN}") from None


def why_no_photo(path: Path) -> str:
    """Returns why a file is not an image that can be read; empty if it may be one.

    Only the file's beginning is read.
    """
    try:
        with Image.open(path, formats=_formats()):
            return ""
    except UnidentifiedImageError:
        return _why_unknown(path)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except Exception:  # an image, and `read_image` says what is wrong with it
        return ""


@functools.cache
def _formats() -> list[str]:
    """Returns the names of the formats that are read."""
    try:
        import pillow_heif  # an extra
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    Image.init()
    return sorted(set(Image.ID) - NO_PHOTOS)


def _why_unknown(path: Path) -> str:
    """Returns why Pillow does not recognise a file."""
    with path.open("rb") as file:
        start = file.read(12)
    if start[4:8] == b"ftyp" and start[8:] in HEIF_BRANDS and "HEIF" not in _formats():
        return "HEIC is read with pillow-heif; run `pip install pillow-heif`"
    if not start:
        return "not a readable image, because the file is empty"
    return f"not a readable image; {SAVE_AGAIN}"


def _rgb(image: Image.Image) -> Image.Image:
    """Decodes an opened image as 8-bit RGB, upright, with at most `LARGE` pixels."""
    width, height = image.size
    shrink = min(1, math.sqrt(LARGE / (width * height)))
    smaller = math.ceil(width * shrink), math.ceil(height * shrink)
    image.draft(None, smaller)  # JPEG decodes to a half, a quarter or an eighth
    image.load()
    orientation = _orientation(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _grey(image)
    if image.mode in ("1", "P", "PA"):  # these can only be resized without smoothing
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.width * image.height > LARGE:
        image = image.resize(smaller, Image.Resampling.LANCZOS)
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int | None:
    """Returns the EXIF orientation.

    ImageOps.exif_transpose would also write the EXIF data again, which fails for
    some that other programs read, such as a resolution of 0/0.
    """
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises any exception on damaged EXIF data
        return None


def _grey(image: Image.Image) -> Image.Image:
    """Converts 16-bit and 32-bit grey to 8 bits."""
    values = np.asarray(image)
    low, high = 0.0, 65535.0
    if image.mode in ("I", "F"):
        finite = values[np.isfinite(values)] if np.isfinite(values).any() else [0]
        low, high = float(np.min(finite)), float(np.max(finite))
    levels = np.zeros(values.shape, np.uint8)
    if high > low:
        for i in range(0, len(values), 256):  # rows, to keep the memory small
            part = (values[i : i + 256].astype(np.float64) - low) / (high - low) * 255
            part = np.nan_to_num(part, posinf=255, neginf=0)
            levels[i : i + 256] = np.rint(np.clip(part, 0, 255))
    return Image.fromarray(levels)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Converts images in [-1, 1] of any shape to rounded uint8 pixels in [0, 255]."""
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
