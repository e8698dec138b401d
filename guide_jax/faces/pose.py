"""Estimates how a face is turned, from its five points and a mean face.

EG3D's camera, whose distance is fixed in units of the face, sees the mean face. The
estimate is the pose whose projection comes nearest to the points. Its main error comes
from people's own proportions; `benchmarks/pose.py` measures it.
"""

import math
from typing import NamedTuple

import numpy as np
import scipy.optimize  # installed with JAX, which requires scipy

# x (to the viewer's right), y (up) and z (to the viewer) of the eyes, the nose and the
# mouth corners of the mean face to which EG3D's photos were aligned: from the 68 points
# of Deep3DFaceRecon's similarity_Lm3D_all.mat (MIT licence), made symmetric.
MEAN_FACE = np.array(
    [
        [-0.3106, 0.2900, 0.1328],
        [0.3106, 0.2900, 0.1328],
        [0.0, -0.0462, 0.5524],
        [-0.2503, -0.3813, 0.2232],
        [0.2503, -0.3813, 0.2232],
    ]
)
DISTANCE = 10.0  # from the camera to the face's origin, as in Deep3DFaceRecon


class Pose(NamedTuple):
    """How a face is turned, in radians.

    Yaw and pitch are the longitude and the latitude of the camera, as seen by the face.

    Attributes:
        yaw: above 0 if the camera is on the viewer's right of the face, which then
            looks to the left of the image.
        pitch: above 0 if the camera is above the face, which then looks down.
        roll: above 0 if the face is turned clockwise in the image.
    """

    yaw: float
    pitch: float
    roll: float


def estimate_pose(points: np.ndarray) -> Pose:
    """Estimates the pose of a face.

    Pose, position and size are fitted, so that the mean face's projection has the least
    squared error.

    Args:
        points: [5, 2] pixels, as in `guide_jax.faces.detect.Face`.

    Raises:
        ValueError: `points` is not of shape [5, 2], or all points coincide.
    """
    points = checked_points(points)
    middle = points.mean(0)
    centred = (points - middle) * [1, -1]  # y up
    scale = np.sqrt(np.mean(centred**2))
    if not scale > 0:
        raise ValueError("the five points do not form a face")
    up = centred[:2].mean(0) - centred[3:].mean(0)
    lean = math.atan2(up[0], up[1])
    # The first step is as long as this vector, so it must not be nearly zero.
    start = [0, 0, lean, 0, 0, -math.log(np.sqrt(np.mean(MEAN_FACE[:, :2] ** 2)))]

    def errors(fit: np.ndarray) -> np.ndarray:
        yaw, pitch, roll, x, y, log_size = fit
        found = project(Pose(yaw, pitch, roll)) * np.exp(log_size) + [x, y]
        return (found - centred / scale).ravel()

    yaw, pitch, roll, *_ = scipy.optimize.least_squares(errors, start).x.tolist()
    return Pose(yaw, pitch, math.remainder(roll, 2 * math.pi))


def project(pose: Pose) -> np.ndarray:
    """Returns where the camera sees the mean face's points, [5, 2] with y up."""
    yaw, pitch, roll = pose
    to_camera = np.array(
        [
            math.sin(yaw) * math.cos(pitch),
            math.sin(pitch),
            math.cos(yaw) * math.cos(pitch),
        ]
    )
    right = np.array([math.cos(yaw), 0, -math.sin(yaw)])
    axes = np.stack([right, np.cross(to_camera, right), to_camera])
    seen = MEAN_FACE @ axes.T
    flat = seen[:, :2] * (DISTANCE / (DISTANCE - seen[:, 2:]))
    return flat @ clockwise(-roll)


def clockwise(angle: float) -> np.ndarray:
    """Returns M so that `points @ M` are turned by an angle, clockwise if y is down."""
    sine, cosine = math.sin(angle), math.cos(angle)
    return np.array([[cosine, sine], [-sine, cosine]])


def checked_points(points: np.ndarray) -> np.ndarray:
    """Returns the points as float64.

    Raises:
        ValueError: `points` is not of shape [5, 2].
    """
    if np.shape(points) != (5, 2):
        raise ValueError(f"points must be [5, 2], not {list(np.shape(points))}")
    return np.asarray(points, np.float64)
