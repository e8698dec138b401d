"""Aligns faces as networks expect them: ArcFace's, FFHQ's and EG3D's crop."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.ndimage  # installed with JAX, which requires scipy
from PIL import Image

from guide_jax.errors import InputError
from guide_jax.faces.detect import MIN_FACE
from guide_jax.faces.photos import fit, load_photo, read_image, to_uint8
from guide_jax.faces.pose import MEAN_FACE, checked_points, clockwise, estimate_pose
from guide_jax.faces.upright import detect_upright
from guide_jax.models.mtcnn import MTCNN

# x and y of the left eye, right eye, nose and mouth corners in ArcFace's crops of
# 112 x 112 pixels; (0, 0) is the centre of the first pixel.
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
# Side of EG3D's crop in units of the mean face: 700 pixels of a photo that is resized
# to 300 pixels per unit.
EG3D_SIDE = 700 / 300
# Faces that are turned further, in degrees, are refused as profiles for EG3D: an eye is
# then hidden, and its point a guess.
MOST_TURNED = 60
SMALLEST_FACE = 32  # pixels; smaller faces show a person too poorly
# A photo counts as aligned if every corner of the crop is at most this far from the
# photo's corner, as a fraction of the photo's shorter side.
ALIGNED = 0.05
# Faces smaller than this fraction of the photo's shorter side are not searched for,
# because they are in the background. For 12 megapixels, this reduces detection to a
# third of the time and half the memory.
SMALLEST_PART = 1 / 60


class Prepared(NamedTuple):
    """A photo ready for the networks.

    Attributes:
        photo: `[1, size, size, 3]`, float32 RGB in [-1, 1].
        note: a line that tells the user what was done, or an empty string.
    """

    photo: np.ndarray
    note: str


def prepare_photo(
    path: str | Path, mtcnn: MTCNN | None, size: int, align: str
) -> Prepared:
    """Reads a photo and aligns its largest face, turning it if needed.

    Args:
        path: an image file; see `guide_jax.faces.photos.read_image`.
        mtcnn: the face detector; unused if `align` is "none".
        size: side of the result in pixels.
        align: "none" for photos that are already aligned (takes the central square), or
            a name in `CROPS` (which also takes the central square if the photo's face
            is already nearly where the crop would place it).

    Raises:
        InputError: the photo can't be read, shows no face, too small a face or one
            whose upright position is unclear, for EG3D only one in profile, `align` is
            unknown, or there is no face detector.
    """
    if align not in ALIGNMENTS:
        known = " or ".join(map(repr, ALIGNMENTS))
        raise InputError(f"unknown alignment {align!r}; use {known}")
    if align != "none" and mtcnn is None:
        raise InputError(
            f"{path}: aligning photos requires a face detector; convert MTCNN's three"
            " files, or use aligned photos with --config.source.align=none"
        )
    if align == "none":
        return Prepared(load_photo(path, size), "")
    image = read_image(path)
    assert mtcnn is not None
    smallest = max(MIN_FACE, min(image.shape[:2]) * SMALLEST_PART)
    image, faces, degrees, doubt = detect_upright(mtcnn, image, smallest)
    if not faces:
        raise InputError(
            f"{path}: no face found; use a frontal photo, or an aligned photo with"
            " --config.source.align=none"
        )
    face = faces[0]
    if face.side < SMALLEST_FACE:
        raise InputError(
            f"{path}: the face is too small ({face.side:.0f} pixels, minimum"
            f" {SMALLEST_FACE}); use a larger photo"
        )
    if doubt:
        raise InputError(
            f"{path}: cannot tell which way up the face is ({doubt}); turn the photo"
            " upright and crop it closely, or use another one"
        )
    which = f"the largest of {len(faces)} faces" if len(faces) > 1 else "the face"
    if degrees:
        which = f"turned by {degrees} degrees clockwise; {which}"
    crop = CROPS[align]
    try:
        quad = crop.quad(face.points)
    except ValueError as error:
        raise InputError(f"{path}: {which} can't be cropped ({error})") from error
    if is_aligned(image, quad):
        note = (
            f"{path}: {which} is already aligned as in {crop.title}; photo used as it"
            " is"
        )
        return Prepared(fit(image, size), note)
    left, top, right, bottom = np.rint(face.box).astype(int)
    note = (
        f"{path}: {which}, in columns {left} to {right} and rows {top} to {bottom}, was"
        f" aligned as in {crop.title}"
    )
    return Prepared(cut(image, quad, size)[None], note)


def is_aligned(image: np.ndarray, quad: np.ndarray) -> bool:
    """Returns whether a crop `[4, 2]` covers nearly the whole image `[H, W, 3]`."""
    H, W = image.shape[:2]
    corners = np.array([[0, 0], [0, H], [W, H], [W, 0]]) - 0.5
    return bool(np.abs(quad - corners).max() < ALIGNED * min(H, W))


def align_arcface(
    image: np.ndarray, points: np.ndarray, size: int = ARCFACE_SIZE
) -> np.ndarray:
    """Crops a face as in the training data of identity encoders.

    A similarity transform maps `ARCFACE_POINTS` as closely as possible to the face's
    points (least squares in the photo's pixels, as in InsightFace_Pytorch). Pixels are
    interpolated bilinearly without smoothing, so a large face loses detail; areas
    outside the image are black.

    Args:
        image: [H, W, 3], uint8 or float in [-1, 1].
        points: [5, 2] pixels, as in `guide_jax.faces.detect.Face`.
        size: side of the result in pixels.

    Returns:
        [size, size, 3], float32 in [-1, 1].

    Raises:
        ValueError: `points` is not of shape [5, 2].
    """
    points = checked_points(points)
    x, y = (ARCFACE_POINTS * (size / ARCFACE_SIZE)).T
    one, zero = np.ones(5), np.zeros(5)
    # u = ax + by + c, v = ay - bx + d
    rows = np.concatenate(
        [np.stack([x, y, one, zero], 1), np.stack([y, -x, zero, one], 1)]
    )
    (a, b, c, d), *_ = np.linalg.lstsq(rows, points.T.ravel(), rcond=None)
    y, x = np.mgrid[:size, :size]
    rows_columns = np.stack([a * y - b * x + d, a * x + b * y + c])  # [2, size, size]
    pixels = image / 127.5 - 1 if image.dtype == np.uint8 else image
    channels = [
        scipy.ndimage.map_coordinates(
            pixels[..., i], rows_columns, order=1, mode="grid-constant", cval=-1
        )
        for i in range(3)
    ]
    return np.stack(channels, -1).astype(np.float32)


def ffhq_quad(points: np.ndarray) -> np.ndarray:
    """Returns the corners of FFHQ's crop.

    FFHQ's preparation takes the eyes and mouth corners from 68 landmarks; this takes
    them from the detector's five points, which shifts the crop by a few hundredths of
    its side.

    Args:
        points: [5, 2] pixels, as in `guide_jax.faces.detect.Face`.

    Returns:
        [4, 2] float64 pixels: top left, bottom left, bottom right, top right.

    Raises:
        ValueError: `points` is not of shape [5, 2], or all points coincide.
    """
    points = checked_points(points)
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    eye_to_eye, eye_to_mouth = points[1] - points[0], mouth - eyes
    x = eye_to_eye - _quarter_turn(eye_to_mouth)
    length = max(np.hypot(*eye_to_eye) * 2.0, np.hypot(*eye_to_mouth) * 1.8)
    if not np.hypot(*x) > 0:
        raise ValueError("the five points do not form a face")
    x *= length / np.hypot(*x)
    y = _quarter_turn(x)
    centre = eyes + eye_to_mouth * 0.1
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def _quarter_turn(vector: np.ndarray) -> np.ndarray:
    return np.array([-vector[1], vector[0]])


def eg3d_quad(points: np.ndarray) -> np.ndarray:
    """Returns the corners of the crop that EG3D's faces have.

    As published, the mean face's three axes are mapped to the five points by the affine
    map with the least squared error. The crop's centre is its origin, and the crop's
    side is `EG3D_SIDE` times the mean length of its two rows. Unlike the published
    preparation, which leaves roll to the cameras, the crop is turned until the face is
    upright, because the paper's cameras are. The published code also rounds
    to whole pixels.

    Args:
        points: [5, 2] pixels, as in `guide_jax.faces.detect.Face`.

    Returns:
        [4, 2] float64 pixels: top left, bottom left, bottom right, top right.

    Raises:
        ValueError: `points` is not of shape [5, 2], all points coincide, or the face is
            turned too far.
    """
    points = checked_points(points)
    pose = estimate_pose(points)
    if abs(pose.yaw) > math.radians(MOST_TURNED):
        raise ValueError(
            f"it is turned by {abs(math.degrees(pose.yaw)):.0f} degrees, where at most"
            f" {MOST_TURNED} are possible; use a more frontal photo"
        )
    middle = points.mean(0)
    upright = (points - middle) @ clockwise(-pose.roll)
    terms = np.concatenate([MEAN_FACE, np.ones((5, 1))], axis=1)
    fitted, *_ = np.linalg.lstsq(terms, upright, rcond=None)  # [4, 2]
    half = EG3D_SIDE / 2 * np.linalg.norm(fitted[:3], axis=0).mean()
    corners = fitted[3] + half * np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]])
    return corners @ clockwise(pose.roll) + middle


class Crop(NamedTuple):
    """A crop that networks expect.

    Attributes:
        title: the name of the data set that has it.
        quad: a function from a face's points `[5, 2]` to the crop's corners `[4, 2]`:
            top left, bottom left, bottom right, top right.
    """

    title: str
    quad: Callable[[np.ndarray], np.ndarray]


CROPS = {"ffhq": Crop("FFHQ", ffhq_quad), "eg3d": Crop("EG3D", eg3d_quad)}
ALIGNMENTS = ("none", *CROPS)


def cut(image: np.ndarray, quad: np.ndarray, size: int) -> np.ndarray:
    """Cuts a crop out of an image, as the FFHQ dataset was prepared.

    Where the crop extends beyond the image, the image is mirrored, blurred and faded to
    its median colour.

    Args:
        image: [H, W, 3], uint8 or float in [-1, 1].
        quad: [4, 2] pixels: top left, bottom left, bottom right, top right.
        size: side of the result in pixels.

    Returns:
        [size, size, 3], float32 in [-1, 1], with 8-bit precision.
    """
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

    large = (4 * size, 4 * size)  # supersampled, then reduced
    corners = (quad + 0.5).ravel().tolist()
    picture = picture.transform(
        large, Image.Transform.QUAD, corners, Image.Resampling.BILINEAR
    )
    picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture, np.float32) / 127.5 - 1


def _bounds(quad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lower and upper integer bounds of a quad, [x, y] each."""
    return np.floor(quad.min(0)).astype(int), np.ceil(quad.max(0)).astype(int)


def _padded(
    picture: Image.Image, before: np.ndarray, after: np.ndarray, blur: float
) -> Image.Image:
    """Pads an image with its reflection, blurred and faded to the median colour.

    Args:
        picture: the image to pad.
        before: [2] padding on the left and at the top, in pixels.
        after: [2] padding on the right and at the bottom, in pixels.
        blur: standard deviation of the blur, in pixels.
    """
    width = ((before[1], after[1]), (before[0], after[0]), (0, 0))
    x = np.pad(np.asarray(picture, np.float32), width, "reflect")
    depth = [
        1 - np.minimum(np.arange(n) / first, np.arange(n)[::-1] / last)
        for n, (first, last) in zip(x.shape[:2], width[:2], strict=True)
    ]  # 1 at the outer edge, 0 at the original image's edge, negative inside it
    depth = np.maximum(depth[0][:, None], depth[1])[..., None].astype(np.float32)
    x += (scipy.ndimage.gaussian_filter(x, (blur, blur, 0)) - x) * np.clip(
        depth * 3 + 1, 0, 1
    )
    x += (np.median(x, axis=(0, 1)) - x) * np.clip(depth, 0, 1)
    return Image.fromarray(np.rint(x).clip(0, 255).astype(np.uint8))
