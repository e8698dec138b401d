"""Brings a face to the place where networks expect it: ArcFace's crop, FFHQ's crop."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.ndimage  # JAX needs scipy, so it is there
from PIL import Image

from guide_jax.errors import InputError
from guide_jax.faces.detect import MIN_FACE, detect
from guide_jax.faces.photos import fit, read_image, to_uint8
from guide_jax.models.mtcnn import MTCNN

# Where ArcFace's crops of 112 x 112 pixels have the eyes, the nose and the mouth's
# corners; pixel (0, 0) is the middle of the first pixel.
ARCFACE_SIZE = 112
ARCFACE_POINTS = np.array(
    [
        [38.29459953, 51.69630051],
        [73.53179932, 51.50139999],
        [56.02519989, 71.73660278],
        [41.54930115, 92.3655014],
        [70.72990036, 92.20410156],
    ]
)
ALIGNMENTS = ("none", "ffhq")
SMALLEST_FACE = 32  # pixels; below, a photo shows a person too badly
# How far a corner of FFHQ's crop may be from the photo's own, in parts of its side, in
# a photo that counts as aligned.
ALIGNED = 0.12
# No smaller faces are looked for than this part of a photo's shorter side: they are in
# the background, and 12 megapixels take a third of the time and half the memory.
SMALLEST_PART = 1 / 60


class Prepared(NamedTuple):
    """A photo ready for the networks.

    Attributes:
        photo: `[1, size, size, 3]`, float32 RGB in [-1, 1].
        note: a line for the user on what was done; empty if there is nothing to say.
    """

    photo: np.ndarray
    note: str


def prepare_photo(
    path: str | Path, mtcnn: MTCNN | None, size: int, align: str
) -> Prepared:
    """Reads a photo and brings its largest face to where FFHQ has it.

    Args:
        path: an image file; see `guide_jax.faces.photos.read_image`.
        mtcnn: finds faces; not used where `align` is "none".
        size: side of the result in pixels.
        align: "none" for photos that are aligned already (the square in their middle
            is taken), or "ffhq". A photo that "ffhq" would leave nearly as it is, is
            taken as it is.

    Raises:
        InputError: the photo can't be read, shows no face or only one too small, there
            is no such `align`, or no face detector where one is needed.
    """
    if align not in ALIGNMENTS:
        known = " or ".join(map(repr, ALIGNMENTS))
        raise InputError(f"no way {align!r} to align photos; choose {known}")
    if align == "ffhq" and mtcnn is None:
        raise InputError(
            f"{path}: to align photos a face detector is needed (convert MTCNN's three"
            " files); or give aligned photos and choose to align 'none'"
        )
    image = read_image(path)
    if align == "none":
        return Prepared(fit(image, size), "")
    smallest = max(MIN_FACE, min(image.shape[:2]) * SMALLEST_PART)
    faces = detect(mtcnn, image, min_face=smallest)
    if not faces:
        raise InputError(
            f"{path}: no face found; give a photo that shows one from the front, or an"
            " aligned one and choose to align 'none'"
        )
    face = faces[0]
    if face.side < SMALLEST_FACE:
        raise InputError(
            f"{path}: the face in it is too small ({face.side:.0f} pixels, at least"
            f" {SMALLEST_FACE} are needed); give a larger picture of it"
        )
    which = f"the largest of {len(faces)} faces" if len(faces) > 1 else "its face"
    if is_aligned(image, face.points):
        note = f"{path}: {which} is where FFHQ has it; taken as it is"
        return Prepared(fit(image, size), note)
    left, top, right, bottom = np.rint(face.box).astype(int)
    note = (
        f"{path}: {which}, in columns {left} to {right} and rows {top} to {bottom}, was"
        " aligned as in FFHQ"
    )
    try:
        return Prepared(align_ffhq(image, face.points, size)[None], note)
    except ValueError as error:
        raise InputError(f"{path}: {which} can't be cut out ({error})") from error


def is_aligned(image: np.ndarray, points: np.ndarray) -> bool:
    """Whether FFHQ's crop is nearly the whole picture [H, W, 3] already."""
    H, W = image.shape[:2]
    quad = ffhq_quad(points)
    corners = np.array([[0, 0], [0, H], [W, H], [W, 0]]) - 0.5
    return bool(np.abs(quad - corners).max() < ALIGNED * min(H, W))


def align_arcface(
    image: np.ndarray, points: np.ndarray, size: int = ARCFACE_SIZE
) -> np.ndarray:
    """Cuts a face out as identity encoders are trained on it.

    The crop is turned, scaled and shifted so that `ARCFACE_POINTS`, taken to the photo,
    come nearest to the face's points (least squares, in the photo's pixels, as
    InsightFace_Pytorch does it). Pixels are interpolated linearly, so a large face
    loses detail; outside the picture is black.

    Args:
        image: [H, W, 3], uint8 or float in [-1, 1].
        points: [5, 2] pixels, as in `guide_jax.faces.detect.Face`.
        size: side of the result.

    Returns:
        [size, size, 3], float32 in [-1, 1].

    Raises:
        ValueError: there are not five points.
    """
    points = _checked(points)
    x, y = (ARCFACE_POINTS * (size / ARCFACE_SIZE)).T
    one, zero = np.ones(5), np.zeros(5)
    # u = ax + by + c, v = ay - bx + d
    rows = np.concatenate(
        [np.stack([x, y, one, zero], 1), np.stack([y, -x, zero, one], 1)]
    )
    (a, b, c, d), *_ = np.linalg.lstsq(rows, points.T.ravel(), rcond=None)
    y, x = np.mgrid[:size, :size]
    where = np.stack([a * y - b * x + d, a * x + b * y + c])  # [2, size, size]
    pixels = image / 127.5 - 1 if image.dtype == np.uint8 else image
    channels = [
        scipy.ndimage.map_coordinates(
            pixels[..., i], where, order=1, mode="grid-constant", cval=-1
        )
        for i in range(3)
    ]
    return np.stack(channels, -1).astype(np.float32)


def ffhq_quad(points: np.ndarray) -> np.ndarray:
    """Returns where FFHQ's crop has its corners.

    Args:
        points: [5, 2] pixels, as in `guide_jax.faces.detect.Face`.

    Returns:
        [4, 2] float64: top left, bottom left, bottom right, top right.

    Raises:
        ValueError: there are not five points, or they are all in one place.
    """
    points = _checked(points)
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    eye_to_eye, eye_to_mouth = points[1] - points[0], mouth - eyes
    x = eye_to_eye - _quarter_turn(eye_to_mouth)
    length = max(np.hypot(*eye_to_eye) * 2.0, np.hypot(*eye_to_mouth) * 1.8)
    if not np.hypot(*x) > 0:
        raise ValueError("the five points don't make a face")
    x *= length / np.hypot(*x)
    y = _quarter_turn(x)
    middle = eyes + eye_to_mouth * 0.1
    return np.stack([middle - x - y, middle - x + y, middle + x + y, middle + x - y])


def _quarter_turn(vector: np.ndarray) -> np.ndarray:
    return np.array([-vector[1], vector[0]])


def _checked(points: np.ndarray) -> np.ndarray:
    if np.shape(points) != (5, 2):
        raise ValueError(f"five points [5, 2] are needed, not {list(np.shape(points))}")
    return np.asarray(points, np.float64)


def align_ffhq(image: np.ndarray, points: np.ndarray, size: int) -> np.ndarray:
    """Cuts a face out as FFHQ was prepared.

    FFHQ's preparation takes the eyes and the mouth's corners from 68 landmarks; here
    they are the detector's five points, which moves the crop by some hundredths of its
    side. The rest is as published: where the crop reaches beyond the picture, the
    picture is mirrored, blurred and faded to its median colour.

    Args:
        image: [H, W, 3], uint8 or float in [-1, 1].
        points: [5, 2] pixels, as in `guide_jax.faces.detect.Face`.
        size: side of the result.

    Returns:
        [size, size, 3], float32 in [-1, 1], of 8-bit steps before the last resize.

    Raises:
        ValueError: there are not five points, or they are all in one place.
    """
    quad = ffhq_quad(points)
    pixels = image if image.dtype == np.uint8 else to_uint8(image)
    picture = Image.fromarray(pixels)
    side = np.hypot(*(quad[3] - quad[0]))

    shrink = int(side / size * 0.5)
    if shrink > 1:
        smaller = [int(np.rint(length / shrink)) for length in picture.size]
        picture = picture.resize(smaller, Image.Resampling.LANCZOS)
        quad, side = quad / shrink, side / shrink

    border = max(int(np.rint(side * 0.1)), 3)
    low, high = _bounds(quad)
    low = np.maximum(low - border, 0)
    high = np.minimum(high + border, picture.size)
    picture, quad = picture.crop((*low, *high)), quad - low

    low, high = _bounds(quad)
    before = np.maximum(border - low, 0)
    after = np.maximum(high - picture.size + border, 0)
    if max(*before, *after) > border - 4:
        least = int(np.rint(side * 0.3))
        before, after = np.maximum(before, least), np.maximum(after, least)
        picture, quad = _padded(picture, before, after, side * 0.02), quad + before

    large = (4 * size, 4 * size)  # so that the quad's pixels are seen finely enough
    corners = (quad + 0.5).ravel().tolist()
    picture = picture.transform(
        large, Image.Transform.QUAD, corners, Image.Resampling.BILINEAR
    )
    picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture, np.float32) / 127.5 - 1


def _bounds(quad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the least whole pixels around a quad, x and y each."""
    return np.floor(quad.min(0)).astype(int), np.ceil(quad.max(0)).astype(int)


def _padded(
    picture: Image.Image, before: np.ndarray, after: np.ndarray, blur: float
) -> Image.Image:
    """Mirrors a picture outwards and lets it fade away.

    Args:
        picture: to be padded.
        before: [2] pixels on the left and the top.
        after: [2] pixels on the right and the bottom.
        blur: standard deviation of the blur, in pixels.
    """
    width = ((before[1], after[1]), (before[0], after[0]), (0, 0))
    x = np.pad(np.asarray(picture, np.float32), width, "reflect")
    depth = [
        1 - np.minimum(np.arange(n) / first, np.arange(n)[::-1] / last)
        for n, (first, last) in zip(x.shape[:2], width[:2], strict=True)
    ]  # 1 at the edge, 0 where the picture begins, below 0 in it
    depth = np.maximum(depth[0][:, None], depth[1])[..., None].astype(np.float32)
    x += (scipy.ndimage.gaussian_filter(x, (blur, blur, 0)) - x) * np.clip(
        depth * 3 + 1, 0, 1
    )
    x += (np.median(x, axis=(0, 1)) - x) * np.clip(depth, 0, 1)
    return Image.fromarray(np.rint(x).clip(0, 255).astype(np.uint8))
