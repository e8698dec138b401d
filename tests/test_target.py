"""The target code, and the offsets of the adjacent latents."""

import jax.numpy as jnp
import numpy as np
import pytest

from guide_jax import target


@pytest.fixture
def w():
    """Returns codes [N, L, D] = [3, 4, 5] that differ by layer, and a mean [D]."""
    rng = np.random.default_rng(0)
    shapes = ((3, 4, 5), (5,))
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def test_extra_equals_a_hand_computation():
    w_u = np.array([[[4.0, 1.0], [1.0, 1.0]]])  # w_u - w_avg = [[3, 0], [0, 0]] ...
    w_u[0, 1] = 1.0, 5.0  # ... and [0, 4]: norm 5 over the whole tensor
    w_avg = np.array([1.0, 1.0])
    np.testing.assert_allclose(
        target.extra(jnp.asarray(w_u), jnp.asarray(w_avg), 10.0),
        [[[1 - 6.0, 1.0], [1.0, 1 - 8.0]]],
        rtol=1e-6,
    )


@pytest.mark.parametrize("distance", [30.0, 0.5])
def test_extra_lies_beyond_the_mean_at_the_given_distance(w, distance):
    codes, w_avg = w
    w_u = codes[:1]
    beyond = np.asarray(target.extra(w_u, w_avg, distance)) - w_avg
    assert beyond.shape == (1, 4, 5)
    assert np.linalg.norm(beyond) == pytest.approx(distance, rel=1e-5)
    direction = w_u - w_avg
    cosine = np.sum(beyond * direction) / np.linalg.norm(direction) / distance
    assert cosine == pytest.approx(-1, abs=1e-5)


def test_extra_accepts_a_mean_per_layer(w):
    codes, _ = w
    w_u, w_avg = codes[:1], codes[1:2]
    direction = w_u - w_avg
    np.testing.assert_allclose(
        target.extra(w_u, w_avg, 3.0),
        w_avg - 3 * direction / np.linalg.norm(direction),
        rtol=1e-5,
    )


def test_extra_is_nan_at_the_mean(w):
    _, w_avg = w
    w_u = np.broadcast_to(w_avg, (1, 4, 5))
    assert np.isnan(target.extra(w_u, w_avg, 30.0)).all()


def test_average_is_the_mean_for_any_distance(w):
    codes, w_avg = w
    for distance in (0.0, 30.0):
        w_target = target.average(codes[:1], jnp.asarray(w_avg), distance)
        np.testing.assert_array_equal(w_target, np.broadcast_to(w_avg, (1, 4, 5)))


def test_offsets_have_length_alpha_and_point_to_the_random_codes(w):
    codes, _ = w
    w_u, w_r = codes[:1], codes[1:]
    alpha = np.array([0.0, 7.5], np.float32)
    delta = np.asarray(target.offsets(w_u, w_r, alpha))
    assert delta.shape == (2, 4, 5)
    np.testing.assert_allclose(
        np.linalg.norm(delta.reshape(2, -1), axis=1), alpha, rtol=1e-5
    )
    direction = w_r[1] - w_u[0]
    np.testing.assert_allclose(
        delta[1], 7.5 * direction / np.linalg.norm(direction), rtol=1e-5
    )


def test_offsets_of_no_codes_are_empty(w):
    codes, _ = w
    assert target.offsets(codes[:1], codes[:0], jnp.zeros(0)).shape == (0, 4, 5)


def test_both_targets_are_available_by_name():
    named = {"extra": target.extra, "average": target.average}
    assert named == target.TARGETS
