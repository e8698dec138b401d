import numpy as np
import pytest
import tiny

from guide_jax.errors import InputError
from guide_jax.faces.detect import Face
from guide_jax.metrics import external, identity
from guide_jax.metrics.identity import Faces
from guide_jax.models import arcface

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)


def faces(embeddings, found):
    return Faces(np.float32(embeddings), np.array(found))


def test_a_cropping_judge_sees_a_face_everywhere():
    encoder = tiny.identity()
    seen = identity.cropping(encoder, 2)(IMAGES)
    wanted = tiny.jitted(encoder, arcface.embed, IMAGES)
    np.testing.assert_allclose(seen.embeddings, wanted, atol=1e-6)
    assert seen.found.tolist() == [True] * 3


def test_an_aligning_judge_embeds_the_face_that_it_finds(monkeypatch):
    encoder = tiny.identity()
    points = np.float32([[4, 5], [11, 5], [8, 8], [5, 11], [10, 11]])
    given = []

    def detect(mtcnn, image):
        given.append(image)
        return [Face(np.zeros(4), 1.0, points)] if len(given) != 2 else []

    monkeypatch.setattr(identity, "detect", detect)
    seen = identity.aligning(encoder, "mtcnn", 2)(IMAGES)
    assert [image.dtype for image in given] == [np.uint8] * 3
    assert seen.found.tolist() == [True, False, True]
    assert not seen.embeddings[1].any()
    crop = identity.align_arcface(given[2], points, 8)
    wanted = tiny.jitted(encoder, lambda m, x: m(x), crop[None])
    np.testing.assert_allclose(seen.embeddings[2:], wanted, atol=1e-6)


def test_similarities_are_of_pictures_with_faces():
    a = faces([[1, 0], [0, 1], [1, 0]], [True, True, True])
    b = faces([[1, 0], [0, 0], [0, 1]], [True, False, True])
    np.testing.assert_allclose(identity.similarity(a, b), [1, 0])
    np.testing.assert_allclose(identity.strangers(a), [0, 1, 0])
    np.testing.assert_allclose(identity.strangers(b), [0])
    assert identity.strangers(faces([[1, 0]], [True])).size == 0


# From outside -------------------------------------------------------------------------


class Middle:
    """An encoder from outside: the mean colour, where there is any red."""

    files = ("middle.dat",)

    def __init__(self, folder):
        if (folder / "middle.dat").read_text() == "damaged":
            raise RuntimeError("Error deserializing")

    def __call__(self, image):
        assert image.shape == (256, 256, 3)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        return image.mean((0, 1)), bool(image[..., 0].mean() > 128)


@pytest.fixture
def middle(monkeypatch, tmp_path):
    monkeypatch.setitem(external.ENCODERS, "middle", Middle)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "middle.dat").write_text("whole")
    return tmp_path / "outside"


def test_a_judge_from_outside_sees_pictures_averaged_to_256_pixels(middle):
    images = np.zeros((2, 512, 512, 3), np.float32)
    images[0, ::2] = 0.5
    images[1, ..., 0] = -1
    seen = external.judge("middle", middle)(images)
    np.testing.assert_allclose(np.linalg.norm(seen.embeddings, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(seen.embeddings[0], np.full(3, 3**-0.5), atol=1e-3)
    assert seen.found.tolist() == [True, False]


def test_mistakes_with_judges_from_outside_are_one_line(middle, monkeypatch):
    with pytest.raises(InputError, match="names 'nobody'; known are dlib, facenet"):
        external.judge("nobody", middle)
    (middle / "middle.dat").write_text("damaged")
    with pytest.raises(InputError, match=r"can't be read .Error deserializing"):
        external.judge("middle", middle)
    (middle / "middle.dat").unlink()
    with pytest.raises(InputError, match=r"middle\.dat: no such file.*convert --pypi"):
        external.judge("middle", middle)
    (middle / "middle.dat").write_text("whole")

    def absent(self, folder):
        raise ImportError("No module named 'middle'")

    monkeypatch.setattr(Middle, "__init__", absent)
    with pytest.raises(InputError, match=r"No module named 'middle'.*\[judges\]"):
        external.judge("middle", middle)
