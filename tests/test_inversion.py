"""The encoder's latent codes, and their refinement."""

import numpy as np
import pytest
import tiny
from flax import nnx

from guide_jax.console import Console
from guide_jax.errors import InputError, UnlearningError
from guide_jax.inversion import make_encode, make_refine

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


def reconstruction_error(generator, lpips, w, photo):
    image = tiny.jitted(generator.synthesis, lambda m, w: m(w)[0], w)
    distance = tiny.jitted(lpips, lambda m, a, b: m(a, b), image, photo)[0]
    return float(distance + np.mean((image - photo) ** 2))


def test_refinement_reduces_the_error_and_never_increases_it():
    generator, lpips = tiny.generator(8), tiny.loss_networks().lpips
    w = np.random.default_rng(1).standard_normal((2, 4, 7)).astype(np.float32)
    photo = tiny.jitted(generator.synthesis, lambda m, w: m(w)[0], w[:1])
    refine = make_refine(generator, lpips, Console())
    initial = reconstruction_error(generator, lpips, w[1:], photo)
    refined = refine(w[1:], photo, 30, 0.05)
    assert reconstruction_error(generator, lpips, refined, photo) < 0.7 * initial
    diverging = refine(w[1:], photo, 5, 100.0)
    assert reconstruction_error(generator, lpips, diverging, photo) <= initial + 1e-6
    np.testing.assert_array_equal(refine(w[1:], photo, 5, 100.0), diverging)


def test_refinement_without_a_finite_error_raises():
    generator, lpips = tiny.generator(8), tiny.loss_networks().lpips
    w = np.full((1, 4, 7), np.nan, np.float32)
    with pytest.raises(UnlearningError, match="error is never finite"):
        make_refine(generator, lpips, Console())(
            w, np.zeros((1, 8, 8, 3), np.float32), 2, 0.1
        )
