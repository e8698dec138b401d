"""Similarities that ignore colour, and thresholds on generated faces."""

import numpy as np
import pytest

from guide_jax.attacks import scoring
from guide_jax.attacks.copies import grey, rephotographed
from guide_jax.errors import UnlearningError
from guide_jax.metrics.judges import Faces

RNG = np.random.default_rng(0)


def by_colour(images):
    """A judge that sees the mean colour and nothing else; black images have no face."""
    mean = images.mean(axis=(1, 2)) + 1.01
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    return Faces((mean / length).astype(np.float32), images.max(axis=(1, 2, 3)) > -1)


SCORER = scoring.Scorer({"judge": by_colour})


def plain(*colour):
    return np.full((1, 8, 8, 3), np.array(colour), np.float32)


def test_a_change_of_tint_is_the_same_face():
    red, blue = plain(1, -1, -1), plain(-1, -1, 1)
    assert scoring.closest(SCORER.see(red), SCORER.see(blue))["judge"][0] > 0.99
    in_colour = by_colour(red).embeddings @ by_colour(blue).embeddings.T
    assert in_colour[0, 0] < 0.1


def test_the_closest_reference_counts_and_pairs_are_in_order():
    images = RNG.uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
    seen = SCORER.see(images)
    np.testing.assert_allclose(scoring.closest(seen, seen)["judge"], 1, atol=1e-5)
    np.testing.assert_allclose(scoring.paired(seen, seen)["judge"], 1, atol=1e-5)
    assert len(scoring.closest(seen.rows([0]), seen)["judge"]) == 1


def test_no_face_has_no_similarity():
    seen = SCORER.see(np.concatenate([plain(-1, -1, -1), plain(1, 1, 1)]))
    found = scoring.closest(seen, seen.rows([1]))["judge"]
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1], 1, atol=1e-5)
    assert np.isnan(scoring.closest(seen, seen.rows([0]))["judge"]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_image_is_an_error_and_not_an_image_without_a_face(bad):
    with pytest.raises(UnlearningError, match="images are not finite, so there is no"):
        SCORER.see(np.concatenate([plain(1, 1, 1), plain(bad, 1, 1)]))


def test_grey_images_have_equal_channels_and_their_luma():
    image = plain(1, 0, -1)
    assert grey(image).shape == image.shape
    np.testing.assert_allclose(grey(image), 0.299 - 0.114, atol=1e-6)


def test_thresholds_state_their_error_rates():
    def judge(images):
        """Sees the upper left quarter's texture, not its brightness."""
        part = images[:, :4, :4].mean(axis=3).reshape(len(images), -1)
        part = part - part.mean(axis=1, keepdims=True)
        length = np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-6)
        return Faces((part / length).astype(np.float32), np.ones(len(images), bool))

    scorer = scoring.Scorer({"judge": judge})
    images = RNG.uniform(-1, 1, (20, 8, 8, 3)).astype(np.float32)
    found = scoring.thresholds(scorer, scorer.see(images), images)["judge"]
    assert 0.03 < found.false <= 0.06
    assert found.strangers < found.value < 1
    # Mirrored and closer copies differ in that corner, darker and warmer ones do not.
    assert 0.1 <= found.missed <= 0.6


def test_copies_look_alike_and_repeat():
    image = np.linspace(-0.8, 0.8, 32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3)
    copy = rephotographed(image, 2)
    assert copy.shape == image.shape
    assert copy.dtype == np.float32
    assert 0.01 < np.abs(copy - image).mean() < 0.3
    np.testing.assert_array_equal(copy, rephotographed(image, 2))
    mirrored = rephotographed(image, 3)
    assert np.abs(mirrored[:, ::-1] - image).mean() < 0.3


def test_a_person_whom_many_resemble_has_a_higher_threshold():
    usual = scoring.Threshold(0.5, 0.05, 0.01, 0.3)
    typical = np.append(np.linspace(0.4, 0.8, 101), np.nan)
    assert scoring.for_person(usual, typical).value == pytest.approx(0.78)
    rare = np.linspace(0, 0.3, 101)
    assert scoring.for_person(usual, rare) == usual
