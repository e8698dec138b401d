import itertools
import math

import numpy as np
import pytest

from guide_jax.faces import pose
from guide_jax.faces.pose import Pose, estimate_pose

POSES = [
    Pose(*np.deg2rad(angles))
    for angles in itertools.product((-45, -10, 0, 30), (-20, 0, 25), (-80, 5, 170))
]


def picture(at: Pose, size=200.0, middle=(300, 250)):
    """Returns the mean face's points in pixels, with y down."""
    return pose.project(at) * [size, -size] + middle


@pytest.mark.parametrize("at", POSES)
def test_a_projected_face_has_its_pose(at):
    np.testing.assert_allclose(estimate_pose(picture(at)), at, atol=1e-5)


def test_the_signs_are_as_documented():
    """Compares with points that are placed by hand, as seen by a viewer."""
    front = picture(Pose(0, 0, 0))
    left, right, nose, mouth_left, _ = front
    assert left[0] < nose[0] < right[0]
    assert left[1] < nose[1] < mouth_left[1]
    # The nose moves the way the face looks.
    for moved, sign in (((-10, 0), (1, 0)), ((10, 0), (-1, 0)), ((0, 10), (0, 1))):
        points = front.copy()
        points[2] += moved
        found = estimate_pose(points)
        np.testing.assert_array_equal(np.sign(np.round(found[:2], 3)), sign)
    # Of a face that leans to the right, the eyes are right of the mouth.
    leaning = front.copy()
    leaning[:2] += [10, 0]
    assert estimate_pose(leaning).roll > 0.02


def test_the_camera_is_in_perspective():
    """The camera is 10 units away: nearer points are larger by their share of that."""
    half_turned = pose.project(Pose(math.pi / 2, 0, 0))
    x, y, z = pose.MEAN_FACE[1]  # its x now points to the camera
    np.testing.assert_allclose(half_turned[1], np.array([-z, y]) * 10 / (10 - x))


@pytest.mark.parametrize("at", POSES[::5])
def test_mirroring_changes_the_signs_of_yaw_and_roll(at):
    rng = np.random.default_rng(0)
    points = picture(at) + rng.normal(0, 8, (5, 2))
    mirrored = (points * [-1, 1] + [600, 0])[[1, 0, 2, 4, 3]]
    found = np.array(estimate_pose(mirrored)) * [-1, 1, -1]
    np.testing.assert_allclose(found, estimate_pose(points), atol=1e-3)


def test_size_and_position_do_not_matter():
    at = Pose(0.4, -0.1, 0.2)
    points = picture(at) + np.random.default_rng(0).normal(0, 8, (5, 2))
    found = estimate_pose(points / 50 - 7)
    np.testing.assert_allclose(found, estimate_pose(points), atol=1e-3)


# In a crop of 512 pixels a unit of the mean face has 512 / 700 * 300 pixels. The nose,
# 0.42 units before the eyes, turns by 0.62 degrees a pixel.
@pytest.mark.parametrize(("side", "most"), [(512, 0.8), (128, 3.2)])
def test_noise_of_a_pixel_moves_the_estimate_by_about_the_noses_turn(side, most):
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        at = Pose(rng.uniform(-0.7, 0.7), rng.uniform(-0.3, 0.3), 0)
        points = picture(at, side * 300 / 700) + rng.normal(0, 1, (5, 2))
        errors.append(np.subtract(estimate_pose(points), at))
    yaw, pitch, roll = np.rad2deg(np.sqrt(np.mean(np.square(errors), axis=0)))
    assert max(yaw, pitch, roll) < most


@pytest.mark.parametrize("points", [np.zeros((4, 2)), np.zeros(10)])
def test_wrong_point_shapes_are_rejected(points):
    with pytest.raises(ValueError, match=r"points must be \[5, 2\], not \["):
        estimate_pose(points)


def test_coinciding_points_are_rejected():
    with pytest.raises(ValueError, match="do not form a face"):
        estimate_pose(np.ones((5, 2)))
