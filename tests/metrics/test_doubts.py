"""Whether photos and reconstructions show one person, by a calibrated judge."""

from pathlib import Path

import numpy as np
import pytest

from guide_jax.metrics.calibration import Calibration
from guide_jax.metrics.doubts import find_doubts
from guide_jax.metrics.judges import Faces

KNOWN = Calibration(threshold=0.5, missed=0.25, auc=0.9)
A, B, C = np.eye(3)  # three people
BETWEEN = np.array([0.6, 0.8, 0])  # resembles B more than A
FACELESS = np.zeros(3)


def faces(*embeddings, floor=0.0):
    """Returns embeddings; those of zeros have no face."""
    array = np.array(embeddings, np.float32).reshape(-1, 3)
    return Faces(array, array.any(1), floor)


def doubts(photos, reconstructions, calibration=KNOWN):
    """Returns the lines about photos that are named 0, 1 and so on."""
    paths = [Path(str(i)) for i in range(len(photos.found))]
    return find_doubts(paths, photos, reconstructions, calibration, "Judge")


@pytest.mark.parametrize(
    ("photos", "reconstructions"),
    [
        ([A], [A]),
        ([A], [BETWEEN]),
        ([A, A, A], [A, A]),
        # Every photo resembles one of the others.
        ([A, BETWEEN, B], [A]),
        # The mean counts, because one code may be worse than the others.
        ([A, A, A], [A, A, B]),
        # Photos without a face say nothing.
        ([A, FACELESS], [A]),
        ([A, FACELESS], [A, A]),
        ([FACELESS, FACELESS, A], [A, A, A]),
    ],
)
def test_photos_of_one_person_raise_no_doubt(photos, reconstructions):
    assert doubts(faces(*photos), faces(*reconstructions)) == []


def test_a_reconstruction_of_somebody_else_is_a_doubt():
    (line,) = doubts(faces(A), faces(B))
    assert line == (
        f"0: the reconstruction is not this person (similarity 0.00 by Judge:"
        f" {KNOWN.describe()})"
    )
    # The test photos' reconstructions aren't among them.
    (line,) = doubts(faces(A, A), faces(B))
    assert line.startswith("0: the reconstruction is not this person")


@pytest.mark.parametrize("pair", [(FACELESS, A), (A, FACELESS)])
def test_a_photo_or_reconstruction_without_a_face_is_a_doubt(pair):
    photo, reconstruction = pair
    (line,) = doubts(faces(photo), faces(reconstruction))
    assert line.startswith("0: the reconstruction is not this person (no face found")


def test_a_photo_of_somebody_else_is_a_doubt():
    (line,) = doubts(faces(A, A, C, BETWEEN), faces(A, A))
    assert line == (
        "2: seems to show somebody else than the person's other photos (similarity"
        f" 0.00 at most, by Judge: {KNOWN.describe()})"
    )


def test_of_two_photos_that_differ_neither_is_the_right_one():
    lines = doubts(faces(A, B), faces(A, B))
    assert [line.partition(":")[0] for line in lines] == ["0", "1"]


def test_similarities_are_rescaled_before_they_meet_the_threshold():
    strict = faces(A, BETWEEN, floor=0.5)  # 0.6 becomes 0.2
    lines = doubts(strict, faces(A, floor=0.5))
    assert len(lines) == 2
    assert "similarity 0.20 at most" in lines[0]
    assert doubts(strict._replace(floor=0.0), faces(A)) == []
