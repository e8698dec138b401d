"""The encoder's latent codes, where people's codes are, and their refinement."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny
from flax import nnx

from guide_jax.config_types import Refine
from guide_jax.console import Console
from guide_jax.errors import InputError, UnlearningError
from guide_jax.inversion import (
    CHECK_EVERY,
    PATIENCE,
    SMALLEST_SPREAD,
    START,
    Prior,
    make_encode,
    make_prior,
    make_refine,
)
from guide_jax.models import arcface
from guide_jax.models.generator import make_mapping

PHOTO = np.random.default_rng(0).uniform(-1, 1, (2, 20, 20, 3)).astype(np.float32)


def test_codes_are_w_avg_plus_the_encoder_output():
    generator, encoder = tiny.generator(16), tiny.encoder()
    w = make_encode(encoder, generator)(PHOTO)
    offset = tiny.jitted(encoder, lambda m, x: m(x), PHOTO)
    w_avg = np.asarray(generator.mapping.w_avg[...])
    np.testing.assert_allclose(np.asarray(w) - w_avg, offset, atol=1e-5)
    assert w.shape == (2, 6, 7)


def test_a_single_code_encoder_fits_any_generator_with_its_w_space():
    encoder = tiny.encoder(num_ws=1)
    small = make_encode(encoder, tiny.generator(8))(PHOTO)
    large = make_encode(encoder, tiny.generator(16))(PHOTO)
    assert (small.shape, large.shape) == ((2, 4, 7), (2, 6, 7))
    for w in (small, large):
        np.testing.assert_array_equal(w, np.broadcast_to(w[:, :1], w.shape))


def test_an_encoder_with_its_own_mean_code_adds_that_one():
    class Constant(nnx.Module):
        num_ws, w_dim = 6, 7

        def __init__(self):
            self.w_avg = nnx.Variable(np.full((6, 7), 2.0, np.float32))

        def __call__(self, images):
            return np.ones((len(images), 6, 7), np.float32)

    w = make_encode(Constant(), tiny.generator(16))(PHOTO)
    np.testing.assert_array_equal(w, np.full((2, 6, 7), 3.0))


def test_an_encoder_that_does_not_fit_the_generator_is_rejected():
    message = r"outputs codes \[5, 7\] but the generator takes"
    with pytest.raises(InputError, match=message):
        make_encode(tiny.encoder(num_ws=5), tiny.generator(16))


# Where people's codes are -------------------------------------------------------------

whiten, color = jax.jit(Prior.whiten), jax.jit(Prior.color)


@functools.cache
def prior_of(resolution):
    return make_prior(tiny.generator(resolution))


def random_people(count, seed=1):
    """Returns codes [N, L, D] of people at 8 pixels that are not the prior's."""
    generator = tiny.generator(8)
    z = np.random.default_rng(seed).standard_normal((count, generator.z_dim))
    return np.asarray(make_mapping(generator)(z.astype(np.float32)))


def test_whitening_and_coloring_are_inverses():
    prior = prior_of(8)
    w = random_people(50)
    assert (w < 0).any()
    assert (w > 0).any()
    scale = np.abs(w).max()
    np.testing.assert_allclose(color(prior, whiten(prior, w)), w, atol=1e-5 * scale)
    v = np.random.default_rng(2).uniform(-2, 2, (9, 4, 7)).astype(np.float32)
    np.testing.assert_allclose(whiten(prior, color(prior, v)), v, atol=1e-3)


def test_whitened_people_are_standard_normal_where_they_vary():
    prior = prior_of(8)
    v = np.asarray(whiten(prior, random_people(4000)))[:, 0]
    varies = np.asarray(prior.spread) > 1.001 * SMALLEST_SPREAD * prior.spread.max()
    assert varies.sum() > 3
    np.testing.assert_allclose(v.mean(0), np.zeros(7), atol=0.1)
    np.testing.assert_allclose(v.std(0)[varies], 1, atol=0.05)
    assert (v.std(0) < 1.05).all()
    covariance = np.cov(v, rowvar=False)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=0.1)


def test_directions_without_variation_keep_a_small_spread():
    generator = tiny.generator(8)
    last = generator.mapping.fc1.weight
    last[...] = last[...].at[:, 3].set(0.0)
    generator.mapping.fc1.bias[...] = 0 * generator.mapping.fc1.bias[...]
    prior = make_prior(generator)
    for leaf in prior:
        assert np.isfinite(leaf).all()
    least = SMALLEST_SPREAD * prior.spread.max()
    assert prior.spread.min() == pytest.approx(float(least))


def test_the_distance_is_1_for_random_people_and_0_for_the_mean_code():
    prior = prior_of(8)
    distance = prior.distance(random_people(4000))
    assert distance.shape == (4000,)
    assert distance.mean() == pytest.approx(1, abs=0.03)
    mean = np.broadcast_to(np.asarray(prior.w_avg), (1, 4, 7))
    np.testing.assert_allclose(prior.distance(mean), [0], atol=1e-6)
    # Twice as far in one of four layers only: the root of the mean square.
    w = np.array(mean)
    w[0, 2, 5] += 2 * prior.radius
    np.testing.assert_allclose(prior.distance(w), [1], rtol=1e-4)


def test_the_prior_is_the_same_every_time():
    again = make_prior(tiny.generator(8))
    for leaf, other in zip(prior_of(8), again, strict=True):
        np.testing.assert_array_equal(leaf, other)


# Refinement ---------------------------------------------------------------------------

USUAL = Refine(30, 0.05, id_weight=0.5, prior_weight=0.05, layers_weight=0.1)
W = np.random.default_rng(1).standard_normal((2, 4, 7)).astype(np.float32)


class Steps:
    """A console whose bar counts the steps."""

    @contextlib.contextmanager
    def bar(self, label, unit, total):
        self.n = 0
        yield self

    def update(self, steps):
        self.n += steps

    def set_postfix(self, error):
        assert float(error) >= 0


@functools.cache
def networks_of(resolution):
    return tiny.generator(resolution), tiny.loss_networks()


def image_of(w, resolution=8):
    generator, _ = networks_of(resolution)
    return tiny.jitted(generator.synthesis, lambda m, w: m(w)[0], w)


def refine(w, photo, console=None, resolution=8, **changes):
    """Refines a code with the usual settings and some changes."""
    generator, networks = networks_of(resolution)
    settings = dataclasses.replace(USUAL, **changes)
    made = make_refine(
        generator, *networks, prior_of(resolution), settings, console or Steps()
    )
    return np.asarray(made(w, photo, "photo 1 of 1"))


def error_of(w, photo, settings=USUAL):
    """Returns the error that refinement minimises, at 8 pixels."""
    _, networks = networks_of(8)
    image = image_of(w)
    lpips = tiny.jitted(networks.lpips, lambda m, a, b: m(a, b), image, photo)[0]
    a, b = (tiny.jitted(networks.identity, arcface.embed, x) for x in (image, photo))
    v = np.asarray(whiten(prior_of(8), w))
    return float(
        lpips
        + np.mean((image - photo) ** 2)
        + settings.id_weight * (1 - np.sum(a * b))
        + settings.prior_weight * np.mean(v**2)
        + settings.layers_weight * np.mean((v - v.mean(1, keepdims=True)) ** 2)
    )


def start_of(w):
    """Returns where refinement starts: the code, clipped to a few deviations."""
    prior = prior_of(8)
    return color(prior, np.clip(whiten(prior, w), -START, START))


def test_refinement_reduces_its_error():
    photo = image_of(random_people(1))
    initial = error_of(start_of(W[1:]), photo)
    found = refine(W[1:], photo)
    assert found.shape == (1, 4, 7)
    assert error_of(found, photo) < 0.7 * initial
    np.testing.assert_array_equal(refine(W[1:], photo), found)


def test_refinement_never_returns_a_code_worse_than_its_start():
    photo = image_of(random_people(1))
    initial = error_of(start_of(W[1:]), photo)
    diverging = refine(W[1:], photo, steps=5, learning_rate=100.0)
    assert error_of(diverging, photo) <= initial + 1e-6
    np.testing.assert_allclose(
        refine(W[1:], photo, steps=0), start_of(W[1:]), atol=1e-5
    )


def test_refinement_stops_when_it_no_longer_improves():
    photo = image_of(random_people(1))
    counted = Steps()
    refine(W[1:], photo, counted, steps=200, learning_rate=0.0)
    # The error is first known after CHECK_EVERY steps.
    assert counted.n == CHECK_EVERY + PATIENCE
    refine(W[1:], photo, counted, steps=25, learning_rate=0.05)
    assert counted.n == 25


def test_refinement_starts_within_a_few_standard_deviations():
    photo = np.zeros((1, 8, 8, 3), np.float32)
    far = color(prior_of(8), np.full((1, 4, 7), 50, np.float32))
    v = np.asarray(whiten(prior_of(8), refine(far, photo, steps=0)))
    np.testing.assert_allclose(v, np.full((1, 4, 7), START), rtol=1e-3)


@pytest.mark.parametrize("penalty", ["prior_weight", "layers_weight"])
def test_penalties_keep_codes_near_the_mean_and_their_layers_alike(penalty):
    w, photo = W[1:, :2], np.zeros((1, 4, 4, 3), np.float32)
    weights = {"prior_weight": 0.0, "layers_weight": 0.0}
    results = {}
    for weight in (0.0, 100.0):
        changes = weights | {penalty: weight, "learning_rate": 0.1}
        found = refine(w, photo, resolution=4, **changes)
        v = np.asarray(whiten(prior_of(4), found))
        between = np.mean((v - v.mean(1, keepdims=True)) ** 2)
        results[weight] = {
            "prior_weight": np.mean(v**2), "layers_weight": between
        }  # fmt: skip
    assert results[100.0][penalty] < 0.1 * results[0.0][penalty]
    if penalty == "layers_weight":  # alike, but not at the mean
        assert results[100.0]["prior_weight"] > 0.1 * results[0.0]["prior_weight"]


def test_refinement_without_a_finite_error_raises():
    w = np.full((1, 4, 7), np.nan, np.float32)
    with pytest.raises(UnlearningError, match="error is never finite"):
        refine(w, np.zeros((1, 8, 8, 3), np.float32), Console(), steps=2)
