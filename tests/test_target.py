"""The target code, the offsets of the adjacent latents, and the fold."""

import dataclasses

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
    discriminant=False, shrinkage=0.2, threshold=1.0, gain=2.0, limit=8.0,
    replace=False, reach=1.3, resolution=8, own=2,
    adjacent=3, others=4, others_weight=2.0, edge=1.0, affine_rate=0.0,
)  # fmt: skip
PEOPLE = np.random.default_rng(7).standard_normal((400, 1, 5)) @ np.diag(
    [3.0, 2.0, 1.0, 0.5, 0.2]
)


def made(groups, w_avg, discriminant=False):
    """Returns a map for groups of codes; W_avg + PEOPLE are the random people."""
    people = np.repeat(PEOPLE + w_avg, 4, axis=1).astype(np.float32)
    return target.fold_map(
        groups, w_avg, people, dataclasses.replace(FOLD, discriminant=discriminant)
    )


def components(codes, w_avg, fold_map):
    return np.asarray(target.components(jnp.asarray(codes), w_avg, fold_map))


def put(codes, wanted, w_avg, fold_map, k=0):
    which = jnp.full(len(codes), k)
    return target.at_component(codes, which, jnp.asarray(wanted), w_avg, fold_map)


def two_groups(w_avg, seed=3):
    """Returns a map of two groups' directions, by the discriminant."""
    rng = np.random.default_rng(seed)
    groups = [2 * rng.standard_normal((2, 4, 5)) + w_avg for _ in range(2)]
    return made([x.astype(np.float32) for x in groups], w_avg, discriminant=True)


def test_a_direction_leads_from_the_mean_code_to_the_mean_of_a_groups_codes(w):
    codes, w_avg = w
    found = made([codes], w_avg)
    away = codes.mean(axis=0) - w_avg
    assert found.lengths == pytest.approx([np.linalg.norm(away)], rel=1e-5)
    np.testing.assert_allclose(found.directions[0], away / found.lengths[0], rtol=1e-5)
    np.testing.assert_array_equal(found.measures, found.directions)


def test_the_discriminant_equals_a_hand_computation(w):
    codes, w_avg = w
    found = made([codes[:1], codes[1:]], w_avg, discriminant=True)
    covariance = PEOPLE[:, 0].T @ PEOPLE[:, 0] / len(PEOPLE)
    largest = np.linalg.eigvalsh(covariance).max()
    whitened = np.linalg.inv(covariance + FOLD.shrinkage * largest * np.eye(5))
    for k, group in enumerate((codes[:1], codes[1:])):
        away = group.mean(axis=0) - w_avg
        measure = away @ whitened
        measure *= np.linalg.norm(away) / np.sum(measure * away)
        np.testing.assert_allclose(found.measures[k], measure, rtol=1e-4, atol=1e-5)
    own = components(codes[:1], w_avg, found)[:, 0]
    np.testing.assert_allclose(own, found.lengths[:1], rtol=1e-5)


def test_the_discriminant_separates_the_person_from_random_people(w):
    codes, w_avg = w
    plain, better = (made([codes[:1]], w_avg, x) for x in (False, True))
    assert better.spreads[0] < 0.8 * plain.spreads[0]
    people = np.repeat(PEOPLE + w_avg, 4, axis=1).astype(np.float32)
    spread = components(people, w_avg, better).std()
    assert better.spreads[0] == pytest.approx(spread, rel=1e-4)


@pytest.mark.parametrize("codes_at", [-4.0, 0.0, 0.999])
def test_the_fold_leaves_codes_below_the_threshold(w, codes_at):
    codes, w_avg = w
    fold_map = made([codes], w_avg, discriminant=True)
    codes = put(codes, [codes_at] * 3, w_avg, fold_map)
    np.testing.assert_array_equal(target.fold(codes, w_avg, fold_map, FOLD), codes)


def test_the_fold_moves_codes_along_the_direction_past_the_threshold(w):
    codes, w_avg = w
    fold_map = made([codes], w_avg, discriminant=True)
    codes = put(codes, [1.0, 2.0, 6.0], w_avg, fold_map)
    folded = target.fold(codes, w_avg, fold_map, FOLD)
    wanted = [1.0, 1 - 2 * 1.0, -8.0]  # the last would be 1 - 2 * 5, but for the limit
    ends = components(folded, w_avg, fold_map)[:, 0]
    np.testing.assert_allclose(ends, wanted, atol=1e-5)
    moved = np.array([0.0, -3.0, -14.0])[:, None, None] * fold_map.directions
    np.testing.assert_allclose(np.asarray(folded - codes), moved, atol=1e-5)


def test_no_target_of_the_fold_lies_beyond_the_threshold():
    rng = np.random.default_rng(0)
    codes = 5 * rng.standard_normal((500, 4, 5)).astype(np.float32)
    w_avg = rng.standard_normal(5).astype(np.float32)
    fold_map = made([codes[:3]], w_avg)
    assert components(codes, w_avg, fold_map).max() > 3
    folded = target.fold(codes, w_avg, fold_map, FOLD)
    assert components(folded, w_avg, fold_map).max() <= FOLD.threshold + 1e-5


def test_directions_are_folded_one_after_another(w):
    codes, w_avg = w
    fold_map = two_groups(w_avg)
    folded = jnp.asarray(codes)
    for k in range(2):
        *parts, none = fold_map
        one = target.FoldMap(*(x[k : k + 1] for x in parts), none)
        folded = target.fold(folded, w_avg, one, FOLD)
    found = target.fold(codes, w_avg, fold_map, FOLD)
    np.testing.assert_allclose(found, folded, atol=1e-6)


def test_offsets_without_components_change_none(w):
    codes, w_avg = w
    fold_map = two_groups(w_avg)
    offsets = np.random.default_rng(1).standard_normal(codes.shape).astype(np.float32)
    clear = target.without_components(jnp.asarray(offsets), fold_map)
    assert np.abs(clear).max() > 0.1
    np.testing.assert_allclose(
        components(codes + clear, w_avg, fold_map),
        components(codes, w_avg, fold_map),
        atol=1e-4,
    )


def test_a_persons_codes_move_by_at_least_twice_the_threshold(w):
    codes, w_avg = w
    codes[0] = w_avg - 0.5 * (codes[1] - w_avg)
    fold_map = made([codes], w_avg)
    own = components(codes, w_avg, fold_map)[:, 0]
    # The outlier's component is below the threshold, so the fold would leave it.
    assert own.min() < -FOLD.threshold
    group = jnp.zeros(3, int)
    targets = target.fold_person(codes, group, w_avg, fold_map, FOLD)
    ends = components(targets, w_avg, fold_map)[:, 0]
    folded = np.maximum(FOLD.threshold - FOLD.gain * (own - FOLD.threshold), -8)
    wanted = np.minimum(folded, own - 2 * FOLD.threshold)
    np.testing.assert_allclose(ends, wanted, atol=1e-5)
    moved = (ends - own)[:, None, None] * fold_map.directions[0]
    np.testing.assert_allclose(np.asarray(targets - codes), moved, atol=1e-5)


def test_each_code_moves_along_its_own_groups_direction(w):
    codes, w_avg = w
    fold_map = made([codes[:1], codes[1:]], w_avg, discriminant=True)
    far = dataclasses.replace(FOLD, threshold=50.0)  # folds nothing but own codes
    group = jnp.array([0, 1, 1])
    targets = target.fold_person(codes, group, w_avg, fold_map, far)
    moved = -2 * 50.0 * fold_map.directions[np.array(group)]
    np.testing.assert_allclose(np.asarray(targets - codes), moved, atol=1e-4)


@pytest.mark.parametrize("discriminant", [False, True])
def test_a_person_at_the_mean_code_has_no_fold(w, discriminant):
    codes, w_avg = w
    at_mean = jnp.broadcast_to(w_avg, codes[:1].shape)
    fold_map = made([np.asarray(at_mean)], w_avg, discriminant)
    group = jnp.zeros(1, int)
    targets = target.fold_person(at_mean, group, w_avg, fold_map, FOLD)
    assert np.isnan(np.asarray(targets)).all()


REPLACE = dataclasses.replace(FOLD, replace=True)


def replaced(w_avg):
    """Returns a map of two groups' directions with a replacement."""
    offset = np.random.default_rng(4).standard_normal((4, 5)).astype(np.float32)
    return target.with_replacement(two_groups(w_avg), offset)


def test_a_replacement_is_a_unit_vector_without_components(w):
    _, w_avg = w
    fold_map = replaced(w_avg)
    assert np.linalg.norm(fold_map.replacement) == pytest.approx(1, rel=1e-5)
    found = components(w_avg + 10 * fold_map.replacement[None], w_avg, fold_map)
    np.testing.assert_allclose(found, np.zeros((1, 2)), atol=1e-4)


def test_codes_lose_their_component_and_move_towards_the_replacement(w):
    codes, w_avg = w
    fold_map = target.with_replacement(made([codes], w_avg), np.eye(4, 5) + 1)
    # The threshold is 1, the gain 2, and the limit 8.
    before = [0.9, 1.25, 3.0, 20.0]
    codes = put(codes[[0, 0, 1, 2]], before, w_avg, fold_map)
    folded = target.fold(codes, w_avg, fold_map, REPLACE)
    ends, moves = np.array([0.9, 0.5, 0.0, 0.0]), np.array([0.0, 0.5, 4.0, 8.0])
    wanted = (ends - before)[:, None, None] * fold_map.directions[:1]
    wanted = wanted + moves[:, None, None] * fold_map.replacement[None]
    np.testing.assert_allclose(folded - codes, wanted, atol=1e-5)


def test_with_a_replacement_no_target_is_beyond_the_threshold():
    rng = np.random.default_rng(0)
    codes = 5 * rng.standard_normal((500, 4, 5)).astype(np.float32)
    w_avg = rng.standard_normal(5).astype(np.float32)
    fold_map = target.with_replacement(made([codes[:3]], w_avg), codes[3] - w_avg)
    folded = target.fold(codes, w_avg, fold_map, REPLACE)
    assert components(folded, w_avg, fold_map).max() <= FOLD.threshold + 1e-5


def test_a_persons_codes_move_the_whole_way_towards_the_replacement(w):
    codes, w_avg = w
    fold_map = target.with_replacement(made([codes], w_avg), np.eye(4, 5) + 1)
    group = jnp.zeros(3, int)
    targets = target.fold_person(codes, group, w_avg, fold_map, REPLACE)
    left = np.asarray(targets - codes) - FOLD.limit * fold_map.replacement
    along = np.sum(left * fold_map.directions, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(left, along * fold_map.directions, atol=1e-5)
    assert (components(targets, w_avg, fold_map) <= 1e-5).all()
