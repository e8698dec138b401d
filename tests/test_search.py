"""Searches in W and W+, and relearning, on a generator whose answer is known."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy

from guide_jax.attacks.relearn import make_relearn
from guide_jax.inversion import make_prior
from guide_jax.models.generator import ImagePass
from guide_jax.search import Search


@pytest.fixture(scope="module")
def search():
    generator = toy.Generator()
    lpips, identity = tiny.loss_networks()
    return Search(generator, lpips, identity, make_prior(generator), 0.1, 3)


def targets(count=2):
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((count, toy.DIM))
    return np.concatenate([toy.image(np.append(x, 0)) for x in weights])


@pytest.mark.parametrize("layers", [1, toy.NUM_WS])
def test_a_search_finds_what_the_generator_can_make(search, layers):
    wanted = targets()
    starts = np.zeros((2, layers, toy.DIM), np.float32)
    found = search(toy.Generator(), wanted, starts, (0, 5, 60))
    assert list(found) == [0, 5, 60]
    errors = np.stack([found[steps].errors for steps in (0, 5, 60)])
    assert (np.diff(errors, axis=0) < 0).all()
    np.testing.assert_allclose(found[0].codes, 0, atol=1e-5)
    made = ImagePass(toy.Generator(), 2)(toy.Generator(), found[60].codes)
    start = ((toy.image(np.zeros(toy.DIM + 1)) - wanted) ** 2).mean()
    assert ((made - wanted) ** 2).mean() < 0.05 * start


def test_codes_in_w_are_the_same_in_all_layers(search):
    starts = np.zeros((1, 1, toy.DIM), np.float32)
    codes = search(toy.Generator(), targets(1), starts, (3,))[3].codes
    assert codes.shape == (1, toy.NUM_WS, toy.DIM)
    np.testing.assert_array_equal(codes[:, 0], codes[:, 1])


def test_rows_do_not_depend_on_their_batch(search):
    wanted = targets(4)
    starts = np.zeros((4, 1, toy.DIM), np.float32)
    together = search(toy.Generator(), wanted, starts, (5,))[5]
    alone = search(toy.Generator(), wanted[3:], starts[3:], (5,))[5]
    np.testing.assert_allclose(together.codes[3:], alone.codes, atol=1e-5)


def test_the_identity_objective_pleases_the_losses_encoder(search):
    starts = np.full((1, 1, toy.DIM), 0.3, np.float32)
    found = search(toy.Generator(), targets(1), starts, (0, 20), "identity")
    assert found[20].errors[0] < found[0].errors[0]


def test_relearning_approaches_the_photo_and_leaves_the_generator():
    generator = toy.Generator()
    before = np.array(generator.synthesis.patterns[...])
    relearn = make_relearn(generator, tiny.loss_networks().lpips)
    photo, w = targets(1), np.full((1, toy.NUM_WS, toy.DIM), 0.5, np.float32)
    shown = relearn(generator, jnp.asarray(w), photo, (0, 2, 30))
    errors = [float(((image - photo) ** 2).mean()) for image in shown.values()]
    assert errors[0] > errors[1] > errors[2]
    np.testing.assert_array_equal(before, generator.synthesis.patterns[...])
