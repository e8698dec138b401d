"""Erasing a person: what no code has afterwards, and who is shown instead."""

import numpy as np
import pytest
import tiny

from guide_jax.config_types import Erase
from guide_jax.console import Console
from guide_jax.erasure import Eraser
from guide_jax.models.generator import ImagePass
from guide_jax.search import Reached

L, D = 6, 7
SETTINGS = Erase(rounds=2, steps=5, shrinkage=0.5, limit=3.0)
RNG = np.random.default_rng(5)
# Random people differ more in some directions than in others.
SPREAD = np.linspace(0.2, 3, D)
PEOPLE = np.repeat(RNG.standard_normal((400, 1, D)) * SPREAD, L, axis=1)
OWN = RNG.standard_normal((1, L, D)) + 2
ENCODED = RNG.standard_normal((3, L, D)) + 1
CANDIDATES = RNG.standard_normal((4, L, D))
PHOTOS = np.zeros((2, 16, 16, 3), np.float32)
STARTS = RNG.standard_normal((2, L, D)).astype(np.float32)


class FakeSearch:
    """Finds given codes, and records what was asked."""

    def __init__(self, found):
        self.found, self.calls = list(found), []

    def __call__(self, generator, targets, starts, budgets, bar):
        self.calls.append((generator, targets, starts, budgets))
        codes = self.found[len(self.calls) - 1]
        return {budgets[0]: Reached(codes, np.zeros(len(codes)))}


@pytest.fixture
def generator():
    made = tiny.generator()
    made.mapping.w_avg[...] = np.linspace(-1, 1, D).astype(np.float32)
    return made


def w_avg(generator):
    return np.asarray(generator.mapping.w_avg[...])


def eraser(generator, found=None, identities=None, **changes):
    if found is None:
        found = RNG.standard_normal((2, 2, L, D))
    people = PEOPLE + w_avg(generator)
    settings = Erase(**vars(SETTINGS) | changes)
    search = FakeSearch(found)
    rest = CANDIDATES, identities or alike, Console()
    return Eraser(generator, search, settings, people, *rest), search


def alike(codes):
    """Embeddings that are the codes' first two numbers, as unit vectors."""
    some = codes[:, 0, :2]
    return some / np.linalg.norm(some, axis=1, keepdims=True)


def test_no_code_has_the_person_or_what_the_search_found(generator):
    erase, search = eraser(generator)
    changes = erase([OWN, ENCODED], PHOTOS, STARTS)
    assert changes.shape == (L, D, D)
    for change in changes:  # the person's direction, and one of each search
        assert np.linalg.matrix_rank(np.eye(D) + change, tol=1e-6) == D - 3
    anything = (100 * RNG.standard_normal((50, L, D))).astype(np.float32)
    read = erase.moved(anything, changes) - w_avg(generator)
    unit = [x.mean(axis=0) - w_avg(generator) for x in (OWN, ENCODED)]
    directions = [sum(x / np.linalg.norm(x) for x in unit)]
    kept = erase.projection(np.array(directions))
    directions.append(
        np.einsum("nld,lde->le", search.found[0] - w_avg(generator), kept) / 2
    )
    kept = erase.projection(np.array(directions))
    directions.append(
        np.einsum("nld,lde->le", search.found[1] - w_avg(generator), kept) / 2
    )
    # Layer by layer, so that an attacker gains nothing in W+.
    along = [np.linalg.solve(covariance(), x.T).T for x in directions]
    components = np.einsum("nld,kld->nlk", read, np.array(along))
    size = np.abs(anything).max() * np.abs(along).max()
    assert np.abs(components).max() < 1e-5 * size


def covariance():
    styles = PEOPLE[:, 0]
    found = styles.T @ styles / len(styles)
    return found + 0.5 * np.linalg.eigvalsh(found)[-1] * np.eye(D)


def test_each_search_is_in_the_generator_that_was_projected_so_far(generator):
    erase, search = eraser(generator)
    erase([OWN], PHOTOS, STARTS)
    assert len(search.calls) == SETTINGS.rounds
    # Not the person's, which is the mean code in all of them.
    images, code = ImagePass(generator, 1), ENCODED[:1].astype(np.float32)
    before = images(generator, code)
    shown = []
    for attacked, targets, starts, budgets in search.calls:
        np.testing.assert_array_equal(targets, PHOTOS)
        np.testing.assert_allclose(starts, STARTS.mean(1, keepdims=True), atol=1e-6)
        assert budgets == (SETTINGS.steps,)
        shown.append(images(attacked, code))
    assert np.abs(shown[0] - before).max() > 1e-3
    assert np.abs(shown[0] - shown[1]).max() > 1e-3
    np.testing.assert_array_equal(images(generator, code), before)


def test_the_person_moves_by_the_limit_to_the_least_similar_candidate(generator):
    erase, _ = eraser(generator, rounds=0)
    changes = erase([OWN], PHOTOS, STARTS)
    away = OWN[0] - w_avg(generator)
    kept = erase.projection(away[None])
    without = np.einsum("ld,lde->le", away, kept)
    np.testing.assert_allclose(without, 0, atol=1e-9)  # the direction is the person's
    found = erase.moved(OWN.astype(np.float32), changes)[0] - w_avg(generator)
    assert np.linalg.norm(found) == pytest.approx(SETTINGS.limit, rel=1e-5)
    similarities, same = [], []
    for candidate in CANDIDATES:
        offset = np.einsum("ld,lde->le", candidate - w_avg(generator), kept)
        offset *= SETTINGS.limit / np.linalg.norm(offset)
        both = np.stack([OWN[0], offset + w_avg(generator)])
        one, other = alike(both)
        similarities.append(one @ other)
        same.append(np.allclose(found, offset, atol=1e-4))
    assert np.sum(same) == 1
    assert same.index(True) == np.argmin(similarities)


def test_the_person_moves_further_while_still_alike(generator):
    # All candidates differ from each other, but the person stays the same.
    erase, _ = eraser(generator, identities=lambda x: np.eye(len(x)), rounds=0)
    changes = erase([OWN], PHOTOS, STARTS)
    found = erase.moved(OWN.astype(np.float32), changes)[0] - w_avg(generator)
    assert np.linalg.norm(found) == pytest.approx(2 * SETTINGS.limit, rel=1e-5)


def test_each_group_of_codes_moves_by_the_replacement(generator):
    erase, _ = eraser(generator, rounds=0)
    changes = erase([OWN, ENCODED], PHOTOS, STARTS)
    means = np.stack([OWN.mean(axis=0), ENCODED.mean(axis=0)])
    away = means - w_avg(generator)
    direction = np.sum([x / np.linalg.norm(x) for x in away], axis=0)
    kept = np.einsum("nld,lde->nle", away, erase.projection(direction[None]))
    moved = erase.moved(means, changes) - w_avg(generator) - kept
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-4)
    assert np.linalg.norm(moved[0]) == pytest.approx(SETTINGS.limit, rel=1e-4)


def test_others_lose_least_along_the_covariance(generator):
    exact, _ = eraser(generator, shrinkage=1e-6)
    plain, _ = eraser(generator, shrinkage=1e6)
    away = (OWN[0] - w_avg(generator))[None]
    lost = []
    for erase in (exact, plain):
        moved = np.einsum("nld,lde->nle", PEOPLE, erase.projection(away) - np.eye(D))
        # In standard deviations of the people.
        lost.append(np.mean((moved / SPREAD) ** 2))
    assert lost[0] < 0.8 * lost[1]
