"""Altered copies of a photo: what each one changes."""

import numpy as np
import pytest

from guide_jax.config_checks import ALTERATIONS
from guide_jax.faces.variants import CLOSER, DARKER, WARMER, variants

SIDE = 40


@pytest.fixture
def photo():
    """Returns a photo [1, H, H, 3]: red grows with x, green with y, blue is even."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    colours = np.stack([x, y, np.full_like(x, 0.5)], -1)
    return (2 * colours - 1)[None].astype(np.float32)


@pytest.mark.parametrize("count", range(len(ALTERATIONS) + 1))
def test_there_are_as_many_copies_as_asked_for(photo, count):
    copies = variants(photo, count)
    assert copies.shape == (count, SIDE, SIDE, 3)
    assert copies.dtype == np.float32
    assert (np.abs(copies) <= 1).all()
    np.testing.assert_array_equal(copies, variants(photo, len(ALTERATIONS))[:count])


def test_the_copies_differ_from_the_photo_and_from_each_other(photo):
    every = [photo[0], *variants(photo, len(ALTERATIONS))]
    for i, a in enumerate(every):
        for b in every[:i]:
            assert np.abs(a - b).mean() > 0.01


def test_the_photo_itself_is_not_changed(photo):
    before = photo.copy()
    variants(photo, len(ALTERATIONS))
    np.testing.assert_array_equal(photo, before)


def test_the_first_copy_is_mirrored(photo):
    mirrored = variants(photo, 1)
    np.testing.assert_array_equal(mirrored[0][:, ::-1], photo[0])
    np.testing.assert_array_equal(mirrored[0, ..., 1], photo[0, ..., 1])


def test_the_second_copy_is_closer(photo):
    closer = variants(photo, 2)[1]
    # The same number of pixels shows less, so the ramps are less steep.
    edge = round(CLOSER * SIDE)
    inside = photo[0, edge : SIDE - edge, edge : SIDE - edge]
    near = slice(2, -2)  # interpolation blurs the edges
    wanted = np.linspace(inside[0, 0, 0], inside[0, -1, 0], SIDE)[near]
    # Pixel centres move by less than half a pixel; colours have 8 bits.
    atol = 0.5 / SIDE + 1 / 127.5
    np.testing.assert_allclose(closer[SIDE // 2, near, 0], wanted, atol=atol)
    np.testing.assert_allclose(closer[near, SIDE // 2, 1], wanted, atol=atol)
    np.testing.assert_allclose(closer[..., 2], photo[0, ..., 2], atol=1 / 127.5)


def brightness(photo):
    """Returns brightness from 0 to 1."""
    return (photo + 1) / 2


def test_the_third_copy_is_darker(photo):
    darker = variants(photo, 3)[2]
    wanted = DARKER * brightness(photo[0])
    np.testing.assert_allclose(brightness(darker), wanted, atol=1e-6)
    assert DARKER < 1


def test_the_fourth_copy_is_warmer(photo):
    dim = 0.5 * (photo + 1) - 1  # so that nothing is clipped
    warmer = variants(dim, 4)[3]
    wanted = np.array(WARMER) * brightness(dim[0])
    np.testing.assert_allclose(brightness(warmer), wanted, atol=1e-6)
    red, green, blue = WARMER
    assert red > green > blue
    # Red that would be brighter than white is white.
    assert variants(photo, 4)[3].max() == 1
