"""Finds the faces in a photo that may lie on its side or stand on its head."""

from typing import NamedTuple

import numpy as np

from guide_jax.faces.detect import Face, detect
from guide_jax.models.mtcnn import MTCNN

# MTCNN also finds faces that are upside down, with points as if they were upright, but
# it scores them lower. Of 281 faces (250 generated, 31 in photos), all scored highest
# when upright, at most 0.9989 otherwise, and 94 % of them above this when upright.
CERTAIN = 0.9995
# By 1 - score, the second best turn was at least 4.4 times as bad as the best.
CLEAR = 2
SIDEWAYS = 45  # degrees: a face that leans further is upright in another turn


class Upright(NamedTuple):
    """A photo's faces, in the turn in which they are upright.

    Attributes:
        image: the turned photo `[H, W, 3]`.
        faces: its faces, largest first; may be empty.
        degrees: by how much the photo was turned clockwise.
        doubt: why the turn may be wrong, or an empty string.
    """

    image: np.ndarray
    faces: list[Face]
    degrees: int = 0
    doubt: str = ""


def detect_upright(mtcnn: MTCNN, image: np.ndarray, min_face: float) -> Upright:
    """Detects faces in the turn, out of four, in which they score highest.

    The other turns are only tried if the largest face may not be upright as it is.

    Args:
        mtcnn: the face detector.
        image: `[H, W, 3]` uint8.
        min_face: as for `detect`.
    """
    faces = detect(mtcnn, image, min_face=min_face)
    if faces and faces[0].score >= CERTAIN and is_upright(faces[0].points):
        return Upright(image, faces)
    turns = [Upright(image, faces)]
    for quarter in (1, 2, 3):
        turned = np.rot90(image, -quarter)
        turned_faces = detect(mtcnn, turned, min_face=min_face)
        turns.append(Upright(turned, turned_faces, 90 * quarter))
    best, second, *_ = sorted(turns, key=_miss)
    doubt = ""
    if best.faces and not is_upright(best.faces[0].points):
        doubt = "its eyes, nose and mouth are not where an upright face has them"
    elif _miss(second) < CLEAR * _miss(best):
        doubt = "two ways of turning the photo look alike"
    return best._replace(doubt=doubt)


def is_upright(points: np.ndarray) -> bool:
    """Returns whether points form an upright face: eyes above nose above mouth.

    Args:
        points: [5, 2] pixels, as in `Face`.
    """
    eyes, nose, mouth = points[:2].mean(0), points[2], points[3:].mean(0)
    across, down = points[1] - points[0], mouth - eyes
    wide, high = np.hypot(*across), np.hypot(*down)
    if not (wide and high and points[4, 0] > points[3, 0]):
        return False
    lean = np.degrees([np.arctan2(across[1], across[0]), np.arctan2(-down[0], down[1])])
    # Faces in profile have eyes close to each other.
    return bool(
        np.abs(lean).max() <= SIDEWAYS
        and 0 < (nose - eyes) @ down < high**2
        and 0.2 < wide / high < 2.5
    )


def _miss(turn: Upright) -> float:
    """Returns 1 - score of the best face that is not much smaller than the largest."""
    large = [x.score for x in turn.faces if 2 * x.side >= turn.faces[0].side]
    return 1 - max(large, default=0)
