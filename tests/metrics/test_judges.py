"""The identity judges: cropping, aligning and external (judges.py)."""

import numpy as np
import pytest
import tiny

from guide_jax.errors import InputError
from guide_jax.faces.detect import Face
from guide_jax.metrics import judges
from guide_jax.metrics.judges import Faces
from guide_jax.models import arcface, dlib_resnet

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)


def faces(embeddings, found, floor=0.0):
    return Faces(np.float32(embeddings), np.array(found), floor)


@pytest.mark.parametrize(
    ("make", "embed", "batch", "floor"),
    [
        (tiny.identity, arcface.embed, 2, 0),
        (tiny.dlib_resnet, dlib_resnet.embed, 3, dlib_resnet.STRANGERS),
    ],
)
def test_a_cropping_judge_finds_a_face_in_every_image(make, embed, batch, floor):
    network = make()
    judged = judges.cropping_judge(network, batch)(IMAGES)
    wanted = tiny.jitted(network, embed, IMAGES)
    np.testing.assert_allclose(judged.embeddings, wanted, atol=1e-6)
    assert judged.found.tolist() == [True] * 3
    assert judged.floor == floor


def test_an_aligning_judge_embeds_the_detected_face(monkeypatch):
    encoder = tiny.identity()
    points = np.float32([[4, 5], [11, 5], [8, 8], [5, 11], [10, 11]])
    detect_inputs = []

    def detect(mtcnn, image):
        detect_inputs.append(image)
        return [Face(np.zeros(4), 1.0, points)] if len(detect_inputs) != 2 else []

    monkeypatch.setattr(judges, "detect", detect)
    judged = judges.aligning_judge(encoder, "mtcnn", 2)(IMAGES)
    assert [image.dtype for image in detect_inputs] == [np.uint8] * 3
    assert judged.found.tolist() == [True, False, True]
    assert not judged.embeddings[1].any()
    crop = judges.align_arcface(detect_inputs[2], points, 8)
    wanted = tiny.jitted(encoder, lambda m, x: m(x), crop[None])
    np.testing.assert_allclose(judged.embeddings[2:], wanted, atol=1e-6)


def test_similarities_use_only_images_with_faces():
    a = faces([[1, 0], [0, 1], [1, 0]], [True, True, True])
    b = faces([[1, 0], [0, 0], [0, 1]], [True, False, True])
    np.testing.assert_allclose(judges.similarity(a, b), [1, 0])
    np.testing.assert_allclose(judges.strangers(a), [0, 1, 0])
    np.testing.assert_allclose(judges.strangers(b), [0])
    assert judges.strangers(faces([[1, 0]], [True])).size == 0


def test_similarities_are_0_at_the_floor_and_1_for_the_same_image():
    np.testing.assert_allclose(
        judges.rescaled(np.array([0.8, 0.9, 1.0, 0.6]), 0.8), [0, 0.5, 1, -1]
    )
    a = faces([[1, 0], [0, 1], [1, 0]], [True] * 3, floor=0.2)
    b = faces([[1, 0], [0, 1], [0.6, 0.8]], [True] * 3, floor=0.2)
    np.testing.assert_allclose(judges.similarity(a, b), [1, 1, 0.5], atol=1e-6)
    np.testing.assert_allclose(judges.strangers(b), [-0.25, 0.5, 0.75], atol=1e-6)


def test_joined_faces_keep_their_order_and_floor():
    parts = [faces([[1, 0]], [True], 0.3), faces([[0, 0], [0, 1]], [False, True], 0.3)]
    whole = judges.joined(parts)
    np.testing.assert_array_equal(whole.embeddings, [[1, 0], [0, 0], [0, 1]])
    assert whole.found.tolist() == [True, False, True]
    assert whole.floor == 0.3


# External -----------------------------------------------------------------------------


class Middle:
    """An external encoder: embeds the mean colour, and finds a face in red images."""

    # Any installed package will do.
    package, floor = "numpy", 0.25
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
    monkeypatch.setitem(judges.ENCODERS, "middle", Middle)
    (tmp_path / "external").mkdir()
    (tmp_path / "external" / "middle.dat").write_text("whole")
    return tmp_path / "external"


def test_an_external_judge_gets_images_averaged_to_256_pixels(middle):
    images = np.zeros((2, 512, 512, 3), np.float32)
    images[0, ::2] = 0.5
    images[1, ..., 0] = -1
    judged = judges.external_judge("middle", middle)(images)
    np.testing.assert_allclose(np.linalg.norm(judged.embeddings, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(judged.embeddings[0], np.full(3, 3**-0.5), atol=1e-3)
    assert judged.found.tolist() == [True, False]
    assert judged.floor == 0.25


def test_auto_names_the_installed_external_judges(middle, monkeypatch):
    assert judges.chosen(("auto",), middle) == ("middle",)
    assert judges.chosen(("auto",), middle.parent) == ()  # no files there
    assert judges.chosen((), middle) == ()
    # Judges that are named are never left out, and each is used once.
    assert judges.chosen(("dlib", "auto", "middle"), middle) == ("dlib", "middle")
    assert judges.chosen(("nobody",), middle) == ("nobody",)
    monkeypatch.setattr(Middle, "package", "no_such_package")
    assert judges.chosen(("auto",), middle) == ()
    assert judges.chosen(("middle",), middle) == ("middle",)


def test_every_external_judge_names_its_package_files_and_floor():
    for name, encoder in judges.ENCODERS.items():
        assert encoder.package in {"dlib": "dlib", "facenet": "cv2"}[name]
        assert encoder.files
        assert 0 <= encoder.floor < 1
    assert judges.Dlib.floor == dlib_resnet.STRANGERS


def test_external_judge_mistakes_give_a_one_line_error(middle, monkeypatch):
    with pytest.raises(InputError, match="names 'nobody'; choose from dlib, facenet"):
        judges.external_judge("nobody", middle)
    (middle / "middle.dat").write_text("damaged")
    with pytest.raises(InputError, match=r"cannot be read .Error deserializing"):
        judges.external_judge("middle", middle)
    (middle / "middle.dat").unlink()
    with pytest.raises(InputError, match=r"middle\.dat: no such file.*convert --pypi"):
        judges.external_judge("middle", middle)
    (middle / "middle.dat").write_text("whole")

    def absent(self, folder):
        raise ImportError("No module named 'middle'")

    monkeypatch.setattr(Middle, "__init__", absent)
    with pytest.raises(InputError, match=r"No module named 'middle'.*\[judges\]"):
        judges.external_judge("middle", middle)
