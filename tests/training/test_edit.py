"""The edit: layers that read codes change so that a person's codes show others."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from guide_jax import target
from guide_jax.config_types import Fold
from guide_jax.models.generator import ImagePass, reads_code
from guide_jax.training import edit
from guide_jax.training.fold import Pairs

SETTINGS = Fold(
    discriminant=True, shrinkage=0.2, threshold=1.0, gain=2.0, limit=3.0, replace=True,
    edit=True, edit_strength=4.0, reach=1.3, resolution=8, own=2, adjacent=3, others=4,
    others_weight=2.0, edge=0.9, affine_rate=0.01,
)  # fmt: skip
GENERATORS = {"stylegan2": tiny.generator, "mobilestylegan": tiny.mobile}


@pytest.fixture(params=GENERATORS)
def generator(request):
    return GENERATORS[request.param]()


@pytest.fixture
def person(generator):
    """Returns random people [M, L, D], the mean code, codes, targets and their map."""
    rng = np.random.default_rng(1)
    L, D = generator.num_ws, generator.w_dim
    w_avg = np.asarray(generator.mapping.w_avg[...])
    people = np.repeat(rng.standard_normal((200, 1, D)), L, axis=1) + w_avg
    people = people.astype(np.float32)
    w_u = (3 * rng.standard_normal((1, L, D)) + w_avg).astype(np.float32)
    fold_map = target.fold_map([w_u], w_avg, people, SETTINGS)
    fold_map = target.with_replacement(fold_map, people[0] - w_avg)
    w_target = target.fold_person(w_u, np.zeros(1, int), w_avg, fold_map, SETTINGS)
    return people, w_avg, w_u, np.asarray(w_target), fold_map


def test_each_affine_layer_is_listed_once_with_its_style(generator):
    layers = generator.synthesis.affine_layers()
    state = edit.nnx.state(generator.synthesis, edit.nnx.Param)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    assert len(layers) == sum(reads_code(path) for path, _ in leaves)
    assert len({id(layer) for _, layer in layers}) == len(layers)
    assert {style for style, _ in layers} == set(range(generator.num_ws))


def test_the_edited_generator_shows_the_changed_codes_images(generator):
    rng = np.random.default_rng(2)
    L, D = generator.num_ws, generator.w_dim
    w_avg = rng.standard_normal(D).astype(np.float32)
    changes = 0.3 * rng.standard_normal((L, D, D))  # other changes in each style
    codes = rng.standard_normal((3, L, D)).astype(np.float32)
    moved = codes + np.einsum("nld,lde->nle", codes - w_avg, changes)

    images = ImagePass(generator, 3)
    wanted = images(generator, moved.astype(np.float32))
    original = images(generator, codes)
    copy = edit.nnx.clone(generator)
    copy.synthesis = edit.edited(generator.synthesis, changes, w_avg)
    found = images(copy, codes)
    size = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=1e-4 * size)
    assert np.abs(found - original).max() > 0.01 * size
    np.testing.assert_array_equal(images(generator, codes), original)


def test_changes_are_a_weighted_ridge_regression():
    rng = np.random.default_rng(3)
    codes, w_avg = rng.standard_normal((40, 2, 3)), rng.standard_normal(3)
    targets, weights = rng.standard_normal((40, 2, 3)), rng.uniform(0, 3, 40)
    changes = edit.linear_changes(Pairs(codes, targets), weights, w_avg)
    for layer in range(2):
        x, y = codes[:, layer] - w_avg, (targets - codes)[:, layer]
        root = np.sqrt(weights)[:, None]
        ridge = edit.RIDGE * np.sum(weights[:, None] * x**2) / 3
        rows = np.concatenate([root * x, np.sqrt(ridge) * np.eye(3)])
        wanted = np.linalg.lstsq(rows, np.concatenate([root * y, np.zeros((3, 3))]))
        np.testing.assert_allclose(changes[layer], wanted[0], atol=1e-9)


def test_the_persons_neighbourhood_has_the_edits_strength(person):
    people, w_avg, w_u, w_target, fold_map = person
    key = jax.random.key(0)
    pairs, weights = edit.regression_pairs(
        people, w_avg, SETTINGS, w_u, w_target, fold_map, key
    )
    count = edit.OWN + edit.NEAR + edit.OTHERS
    assert pairs.codes.shape == pairs.targets.shape == (count, *w_u.shape[1:])
    assert weights.shape == (count,)
    ends = edit.OWN, edit.OWN + edit.NEAR
    assert set(weights[: ends[0]]) == {SETTINGS.edit_strength * edit.OWN_WEIGHT}
    assert set(weights[ends[0] : ends[1]]) == {SETTINGS.edit_strength}
    assert set(weights[ends[1] :]) == {1.0}


def test_a_stronger_edit_takes_away_more_of_the_components(person):
    people, w_avg, w_u, w_target, fold_map = person

    def left(strength):
        """Returns which part of the neighbourhood's mean component is left."""
        settings = dataclasses.replace(SETTINGS, edit_strength=strength)
        key = jax.random.key(0)
        pairs, weights = edit.regression_pairs(
            people, w_avg, settings, w_u, w_target, fold_map, key
        )
        changes = edit.linear_changes(pairs, weights, w_avg)
        near = np.asarray(pairs.codes)[edit.OWN : edit.OWN + edit.NEAR]
        moved = near + np.einsum("nld,lde->nle", near - w_avg, changes)
        before, after = (
            np.mean(target.components(x.astype(np.float32), w_avg, fold_map))
            for x in (near, moved)
        )
        return after / before

    assert left(30.0) < 0.5 < 0.8 < left(0.001)
    assert left(30.0) < left(1.0)


def test_the_edit_changes_a_copy(generator, person):
    _, _, w_u, w_target, fold_map = person
    images, copy = ImagePass(generator, 1), edit.nnx.clone(generator)
    before = images(generator, w_u)
    arguments = SETTINGS, 1.0, w_u, w_target, fold_map, jax.random.key(0)
    copy.synthesis = edit.edit(generator, *arguments)
    assert np.abs(images(copy, w_u) - before).max() > 0.01
    np.testing.assert_array_equal(images(generator, w_u), before)
