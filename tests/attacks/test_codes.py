"""Codes near a person's, and files of directions."""

import numpy as np
import pytest

from guide_jax.attacks import codes
from guide_jax.errors import InputError

L, D = 3, 4
RNG = np.random.default_rng(0)
W = RNG.standard_normal((2, L, D)).astype(np.float32)
W_AVG = RNG.standard_normal(D).astype(np.float32)
PEOPLE = RNG.standard_normal((50, L, D)).astype(np.float32)


def test_edits_go_both_ways_along_each_direction():
    smile = np.eye(D, dtype=np.float32)[1]
    late = np.zeros((L, D), np.float32)
    late[2, 0] = 1
    found = codes.edits(W, {"smile": smile, "late": late}, (0.5, 2.0))
    assert found.shape == (2 * 2 * 2 * 2, L, D)
    np.testing.assert_allclose(
        found[0] - W[0], np.tile(-0.5 * smile, (L, 1)), atol=1e-6
    )
    np.testing.assert_allclose(found[-1] - W[1], 2 * late, atol=1e-6)
    assert len(codes.edits(W, {}, (1.0,))) == 0


def test_the_line_runs_through_the_mean_code():
    found = codes.line(W, W_AVG).reshape(len(codes.LINE), 2, L, D)
    for k, rows in zip(codes.LINE, found, strict=True):
        np.testing.assert_allclose(rows - W_AVG, k * (W - W_AVG), atol=1e-5)


def test_the_neighbourhood_grows_and_repeats():
    found = codes.neighbourhood(W, W_AVG, PEOPLE, 7)
    assert found.dtype == np.float32
    radii = len(codes.TOWARDS) + len(codes.RANDOM)
    by_radius = found.reshape(radii, codes.NEIGHBOURS, 2, L, D)
    away = np.linalg.norm(by_radius - W, axis=(3, 4)).mean(axis=(1, 2))
    n = len(codes.TOWARDS)
    assert (np.diff(away[:n]) > 0).all()
    assert (np.diff(away[n:]) > 0).all()
    length = np.linalg.norm(W - W_AVG, axis=(1, 2)).mean()
    np.testing.assert_allclose(away[n:], np.array(codes.RANDOM) * length, rtol=1e-5)
    np.testing.assert_array_equal(found, codes.neighbourhood(W, W_AVG, PEOPLE, 7))
    assert not np.array_equal(found, codes.neighbourhood(W, W_AVG, PEOPLE, 8))


def test_directions_are_read_for_one_or_all_layers(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, smile=np.ones(D), pose=np.ones((L, D)))
    found = codes.read_directions(path, L, D)
    assert {name: x.shape for name, x in found.items()} == {
        "smile": (D,),
        "pose": (L, D),
    }
    assert found["smile"].dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"smile": np.ones(D + 1)}, "'smile' has shape [5], but the generator's codes"),
        ({"smile": np.ones((L + 1, D))}, "'smile' has shape [4, 4]"),
        ({"smile": np.full(D, np.nan)}, "smile is not finite"),
        ({"smile": np.array(["a"])}, "cannot be read"),
    ],
)
def test_wrong_directions_are_one_line(tmp_path, arrays, message):
    path = tmp_path / "d.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError) as error:
        codes.read_directions(path, L, D)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_or_damaged_file_of_directions_is_one_line(tmp_path):
    path = tmp_path / "d.npz"
    with pytest.raises(InputError, match="No such file"):
        codes.read_directions(path, L, D)
    path.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(InputError, match=r"check --config\.attack\.directions"):
        codes.read_directions(path, L, D)
