"""The target code, the offsets of the adjacent latents, and the fold."""

import jax.numpy as jnp
import numpy as np
import pytest

from guide_jax import target
from guide_jax.config_types import Fold


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


FOLD = Fold(
    threshold=1.0, gain=2.0, limit=8.0, reach=1.3, resolution=8, own=2, adjacent=3,
    others=4, others_weight=2.0,
)  # fmt: skip


def components(codes, w_avg, along):
    return np.sum((np.asarray(codes) - w_avg) * np.asarray(along), axis=(1, 2))


def along_of(w_avg, seed=3):
    along = np.random.default_rng(seed).standard_normal((4, 5)).astype(np.float32)
    return along / np.linalg.norm(along)


def test_the_direction_leads_from_the_mean_code_to_the_mean_of_the_persons(w):
    codes, w_avg = w
    along = np.asarray(target.direction(codes, w_avg))
    assert np.linalg.norm(along) == pytest.approx(1, rel=1e-5)
    away = codes.mean(axis=0) - w_avg
    np.testing.assert_allclose(along, away / np.linalg.norm(away), rtol=1e-5)


@pytest.mark.parametrize("codes_at", [-4.0, 0.0, 0.999])
def test_the_fold_leaves_codes_below_the_threshold(w, codes_at):
    codes, w_avg = w
    along = along_of(w_avg)
    codes = target.at_component(codes, jnp.full(3, codes_at), w_avg, along)
    np.testing.assert_array_equal(target.fold(codes, w_avg, along, FOLD), codes)


def test_the_fold_moves_codes_along_the_direction_past_the_threshold(w):
    codes, w_avg = w
    along = along_of(w_avg)
    codes = target.at_component(codes, jnp.array([1.0, 2.0, 6.0]), w_avg, along)
    folded = target.fold(codes, w_avg, along, FOLD)
    wanted = [1.0, 1 - 2 * 1.0, -8.0]  # the last would be 1 - 2 * 5, but for the limit
    np.testing.assert_allclose(components(folded, w_avg, along), wanted, atol=1e-5)
    moved = np.asarray(folded - codes)
    np.testing.assert_allclose(
        moved, np.array([0.0, -3.0, -14.0])[:, None, None] * along, atol=1e-5
    )


def test_no_target_of_the_fold_lies_beyond_the_threshold():
    rng = np.random.default_rng(0)
    codes = 5 * rng.standard_normal((500, 4, 5)).astype(np.float32)
    w_avg = rng.standard_normal(5).astype(np.float32)
    along = along_of(w_avg)
    assert components(codes, w_avg, along).max() > 3
    folded = target.fold(codes, w_avg, along, FOLD)
    assert components(folded, w_avg, along).max() <= FOLD.threshold + 1e-5


def test_a_persons_codes_move_by_at_least_twice_the_threshold(w):
    codes, w_avg = w
    codes[0] = w_avg - 0.5 * (codes[1] - w_avg)
    along = np.asarray(target.direction(codes, w_avg))
    own = components(codes, w_avg, along)
    # The outlier's component is below the threshold, so the fold would leave it.
    assert own.min() < -FOLD.threshold
    targets = target.fold_person(codes, w_avg, FOLD)
    ends = components(targets, w_avg, along)
    folded = np.maximum(FOLD.threshold - FOLD.gain * (own - FOLD.threshold), -8)
    wanted = np.minimum(folded, own - 2 * FOLD.threshold)
    np.testing.assert_allclose(ends, wanted, atol=1e-5)
    across = np.asarray(targets - codes) - (ends - own)[:, None, None] * along
    np.testing.assert_allclose(across, 0, atol=1e-5)


def test_a_person_at_the_mean_code_has_no_fold(w):
    codes, w_avg = w
    at_mean = jnp.broadcast_to(w_avg, codes[:1].shape)
    assert np.isnan(np.asarray(target.fold_person(at_mean, w_avg, FOLD))).all()
