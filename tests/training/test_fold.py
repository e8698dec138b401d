"""A step of the method "fold": its codes, its loss, and what it trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import default
from guide_jax import target
from guide_jax.config import read
from guide_jax.config_types import Fold
from guide_jax.errors import InputError
from guide_jax.experiment.modes import choose_devices
from guide_jax.models.network import flat_leaves
from guide_jax.training import fold
from guide_jax.training.checkpoint import TrainStateStore
from guide_jax.training.trainer import Trainer

SETTINGS = Fold(
    discriminant=True, shrinkage=0.2, threshold=2.0, gain=2.0, limit=30.0,
    replace=False, reach=1.3, resolution=8, own=2,
    adjacent=3, others=4, others_weight=2.0, edge=0.9, affine_rate=0.01,
)  # fmt: skip
RNG = np.random.default_rng(5)
PEOPLE = RNG.standard_normal((20, 6, 7)).astype(np.float32)  # [M, L, D]
W_AVG = np.zeros(7, np.float32)
W_U = (2 * RNG.standard_normal((2, 6, 7)) + 1).astype(np.float32)  # [P, L, D]
CROWD = np.repeat(
    RNG.standard_normal((300, 1, 7)) * np.linspace(0.3, 2, 7), 6, axis=1
).astype(np.float32)
GROUPS = np.array([0, 1])
MAP = target.fold_map([W_U[:1], W_U[1:]], W_AVG, CROWD, SETTINGS)
W_TARGET = np.asarray(target.fold_person(W_U, GROUPS, W_AVG, MAP, SETTINGS))


def components(codes):
    return np.asarray(target.components(codes, W_AVG, MAP))


def draw(seed, settings=SETTINGS):
    key = jax.random.key(seed)
    return fold.draw_pairs(PEOPLE, W_AVG, settings, W_U, W_TARGET, MAP, key)


def test_half_the_people_are_mixed_from_several():
    codes = np.asarray(fold.mixed_people(PEOPLE, 200, jax.random.key(0)))
    # The row of PEOPLE from which each layer comes.
    same = (codes[:, None] == PEOPLE[None]).all(axis=3)  # [N, M, L]
    assert same.any(axis=1).all()
    whole = same.all(axis=2).any(axis=1)
    assert 0.35 < whole.mean() < 0.65
    assert len(np.unique(codes[whole][:, 0], axis=0)) > 10


def test_a_step_has_own_adjacent_and_other_pairs():
    codes, targets = draw(0)
    assert codes.shape == targets.shape == (2 + 3 + 4, 6, 7)


def test_own_pairs_are_the_persons_codes_with_the_same_offset_for_both():
    codes, targets = (np.asarray(x)[:2] for x in draw(1))
    offsets = codes - W_U
    np.testing.assert_allclose(targets - W_TARGET, offsets, atol=1e-5)
    assert (np.abs(offsets).max(axis=(1, 2)) > 0.1).all()
    np.testing.assert_allclose(components(codes), components(W_U), atol=1e-4)


def test_adjacent_people_reach_the_persons_components_and_fold_back():
    found = []
    for seed in range(40):
        codes, targets = (np.asarray(x)[2:5] for x in draw(seed))
        # Which direction was drawn is not known, but one component is that large.
        found.append(components(codes).max(axis=1))
        expected = target.fold(codes, W_AVG, MAP, SETTINGS)
        np.testing.assert_allclose(targets, expected, atol=1e-4)
    largest = SETTINGS.reach * MAP.lengths.max()
    assert np.min(found) >= fold.NEAREST * SETTINGS.threshold - 1e-3
    assert np.max(found) > 0.8 * largest


def test_half_the_others_are_below_the_threshold_along_a_direction():
    most = SETTINGS.edge * SETTINGS.threshold
    for seed in range(10):
        codes, targets = (np.asarray(x)[5:] for x in draw(seed))
        edge = components(codes[:2])
        assert ((edge > -1e-3) & (edge < most + 1e-3)).any(axis=1).all()
        expected = target.fold(codes, W_AVG, MAP, SETTINGS)
        np.testing.assert_allclose(targets, expected, atol=1e-4)
        stay = (components(codes) <= SETTINGS.threshold).all(axis=1)
        np.testing.assert_array_equal(targets[stay], codes[stay])


def test_with_one_direction_components_stay_in_their_ranges():
    settings = dataclasses.replace(SETTINGS, edge=1.0, discriminant=False)
    one = target.fold_map([W_U], W_AVG, CROWD, settings)
    group = np.zeros(len(W_U), int)
    w_target = np.asarray(target.fold_person(W_U, group, W_AVG, one, settings))
    found = []
    for seed in range(20):
        key = jax.random.key(seed)
        codes, targets = (
            np.asarray(x)
            for x in fold.draw_pairs(PEOPLE, W_AVG, settings, W_U, w_target, one, key)
        )
        near, edge = np.split(
            np.asarray(target.components(codes[2:7], W_AVG, one))[:, 0], [3]
        )
        found.append(near)
        assert (edge >= -1e-4).all()
        assert (edge <= settings.threshold + 1e-4).all()
        np.testing.assert_allclose(targets[5:7], codes[5:7], atol=1e-4)
    largest = settings.reach * one.lengths[0]
    assert np.min(found) >= fold.NEAREST * settings.threshold - 1e-4
    assert 0.8 * largest < np.max(found) <= largest + 1e-4


def test_distances_equal_a_hand_computation():
    source = {
        "b4.x": jnp.full((2, 4, 4, 1), 2.0),  # mean square 4
        "b8.x": jnp.full((2, 8, 8, 1), 0.5),  # mean square 1 / 4
        "b16.x": jnp.full((2, 16, 16, 1), 1.0),
    }
    change = jnp.array([1.0, 3.0])[:, None, None, None]
    student = {name: x + change for name, x in source.items()}
    found = fold.distances(student, source, 8)
    np.testing.assert_allclose(found, [(1 / 4 + 4) / 2, 9 * (1 / 4 + 4) / 2])


def test_each_person_trains_on_one_device():
    config = default.get_config()
    config.method = "fold"
    assert choose_devices(read(config), True) == jax.devices()[:1]
    config.parallel.over = "people"
    assert choose_devices(read(config), True) == jax.devices()
    config.parallel.over, config.parallel.devices = "latents", 2
    with pytest.raises(InputError, match=r"config\.parallel\.over=people gives each"):
        choose_devices(read(config), True)


@pytest.fixture(scope="module")
def generator():
    return tiny.generator(16)


def settings(steps=4, **changes):
    shared = tiny.training(steps=steps, learning_rate=3e-3)
    own = dataclasses.replace(SETTINGS, **changes)
    return dataclasses.replace(shared, fold=own, codes_per_step=own.own)


def train(generator, training, state=None):
    """Returns the unlearned generator, and each step's terms."""
    steps = []
    w_avg = generator.mapping.w_avg[...]
    w_target = target.fold_person(W_U, GROUPS, w_avg, MAP, training.fold)
    unlearned = Trainer(generator, tiny.loss_networks(), training)(
        W_U,
        np.asarray(w_target),
        fold_map=MAP,
        on_step=lambda _, terms: steps.append(terms),
        state=state,
    )
    return unlearned, steps


def test_training_brings_the_student_closer_to_the_targets(generator):
    _, steps = train(generator, settings(steps=80))
    for name in ("local", "adjacency", "total"):
        values = [terms[name] for terms in steps]
        assert np.mean(values[-10:]) < 0.8 * np.mean(values[:10]), name


def test_only_layers_up_to_the_resolution_are_trained(generator):
    unlearned, _ = train(generator, settings())
    before, after = (flat_leaves(x.synthesis) for x in (generator, unlearned))
    changed = {
        name.split(".")[0]
        for name, leaf in before.items()
        if not np.array_equal(leaf, after[name])
    }
    assert changed == {"b4", "b8"}
    mapping = (flat_leaves(x.mapping) for x in (generator, unlearned))
    for leaf, same in zip(*(x.values() for x in mapping), strict=True):
        np.testing.assert_array_equal(leaf, same)


def test_affine_weights_have_a_rate_of_their_own_along_the_measures(generator):
    """With no other rate, they alone change, and only along the measures."""
    training = dataclasses.replace(settings(), learning_rate=0.0)
    unlearned, _ = train(generator, training)
    before, after = (flat_leaves(x.synthesis) for x in (generator, unlearned))
    changed = {k for k, x in before.items() if not np.array_equal(x, after[k])}
    assert changed
    across = np.linalg.svd(MAP.measures.sum(axis=1))[2][2:]  # [D - K, D]
    for name in changed:
        assert name.endswith("affine.weight")
        change = np.asarray(after[name] - before[name])
        assert np.abs(change).max() > 1e-4
        np.testing.assert_allclose(across @ change, 0, atol=1e-5)


def test_without_a_map_the_fold_is_refused(generator):
    trainer = Trainer(generator, tiny.loss_networks(), settings())
    with pytest.raises(ValueError, match="a fold map belongs to the fold"):
        trainer(W_U, W_TARGET)


def test_a_resumed_training_ends_the_same(generator, tmp_path):
    whole, _ = train(generator, settings(steps=6))
    store = TrainStateStore(tmp_path / "state", "id", every=4)
    train(generator, settings(steps=6), store)
    resumed, steps = train(generator, settings(steps=6), store)
    assert len(steps) == 2
    for (name, leaf), other in zip(
        flat_leaves(whole).items(), flat_leaves(resumed).values(), strict=True
    ):
        np.testing.assert_allclose(leaf, other, atol=1e-6, err_msg=name)
