"""Turned photos; `test_align.py` tests what is done with them."""

import numpy as np
import pytest
import red_faces

from guide_jax.faces import upright
from guide_jax.faces.detect import Face

FACE = np.array([[70, 60], [110, 60], [90, 85], [75, 105], [105, 105]], float)


def turned(degrees):
    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return FACE @ matrix.T


@pytest.mark.parametrize("degrees", range(-180, 180, 30))
def test_points_are_upright_up_to_45_degrees(degrees):
    assert upright.is_upright(turned(degrees)) == (abs(degrees) < 45)


@pytest.mark.parametrize(
    "wrong",
    [
        FACE[[1, 0, 2, 4, 3]],  # mirrored
        FACE[[0, 1, 3, 2, 4]] * [1, 1],  # the nose beside the mouth
        FACE - [[0, 0], [0, 0], [0, 40], [0, 0], [0, 0]],  # the nose above the eyes
        FACE * [4, 1],
        FACE * [0.05, 1],
        np.ones((5, 2)),
    ],
)
def test_points_that_form_no_face_are_not_upright(wrong):
    assert not upright.is_upright(wrong)


def test_a_frontal_profile_and_a_narrow_face_are_upright():
    assert upright.is_upright(FACE * [0.4, 1])
    assert upright.is_upright(FACE * [1, 0.6])


@pytest.mark.parametrize("quarters", range(4))
def test_the_turn_with_the_best_score_is_taken(quarters):
    image = red_faces.picture(120, 160, (50, 40, 40))
    found = upright.detect_upright(
        red_faces.RedMTCNN(), np.rot90(image, quarters), min_face=20
    )
    assert (found.degrees, found.doubt) == (90 * quarters, "")
    np.testing.assert_array_equal(found.image, image)
    assert len(found.faces) == 1


def detections(monkeypatch, *scores):
    """Makes `detect` return faces of these (score, points), turn by turn."""
    left, box = list(scores), np.array([0, 0, 40, 40], np.float32)
    monkeypatch.setattr(
        upright, "detect", lambda *_, **__: [Face(box, *x) for x in left.pop(0)]
    )
    return left


def test_a_certain_face_is_not_looked_for_again(monkeypatch):
    left = detections(monkeypatch, [(0.9999, FACE)], [(1.0, FACE)])
    found = upright.detect_upright(None, np.zeros((9, 9, 3), np.uint8), 20)
    assert (found.degrees, found.doubt, len(left)) == (0, "", 1)


@pytest.mark.parametrize(
    ("turns", "degrees", "doubt"),
    [
        ([[(0.9, FACE)], [], [], []], 0, ""),
        ([[(0.9, FACE)], [], [(0.89, FACE)], []], 0, "two ways of turning"),
        ([[(0.9, FACE)], [], [(0.96, FACE)], []], 180, ""),
        ([[(0.9999, turned(80))], [], [], []], 0, "eyes, nose and mouth"),
        ([[(0.9999, turned(80))], [], [], [(1.0, turned(-10))]], 270, ""),
    ],
)
def test_unclear_turns_are_doubted(monkeypatch, turns, degrees, doubt):
    detections(monkeypatch, *turns)
    found = upright.detect_upright(None, np.zeros((9, 9, 3), np.uint8), 20)
    assert found.degrees == degrees
    assert doubt in found.doubt
    assert bool(found.doubt) == bool(doubt)


def test_a_photo_without_a_face_has_none_in_any_turn(monkeypatch):
    left = detections(monkeypatch, [], [], [], [])
    assert upright.detect_upright(None, np.zeros((9, 9, 3), np.uint8), 20).faces == []
    assert not left
