import numpy as np
import pytest
import tiny
from flax import nnx

from guide_jax.errors import InputError, UnlearningError
from guide_jax.inversion import make_encode, make_refine

PHOTO = np.random.default_rng(0).uniform(-1, 1, (2, 20, 20, 3)).astype(np.float32)


def test_codes_are_w_avg_and_what_the_encoder_says():
    generator, encoder = tiny.generator(16), tiny.encoder()
    w = make_encode(encoder, generator)(PHOTO)
    offset = tiny.jitted(encoder, lambda m, x: m(x), PHOTO)
    np.testing.assert_allclose(w - generator.mapping.w_avg[...], offset, atol=1e-5)
    assert w.shape == (2, 6, 7)


def test_an_encoder_of_one_w_serves_any_generator_of_its_space():
    encoder = tiny.encoder(num_ws=1)
    small = make_encode(encoder, tiny.generator(8))(PHOTO)
    large = make_encode(encoder, tiny.generator(16))(PHOTO)
    assert (small.shape, large.shape) == ((2, 4, 7), (2, 6, 7))
    for w in (small, large):
        np.testing.assert_array_equal(w, np.broadcast_to(w[:, :1], w.shape))


def test_an_encoder_with_a_mean_code_of_its_own_is_relative_to_that():
    class Constant(nnx.Module):
        num_ws, w_dim = 6, 7

        def __init__(self):
            self.w_avg = nnx.Variable(np.full((6, 7), 2.0, np.float32))

        def __call__(self, images):
            return np.ones((len(images), 6, 7), np.float32)

    w = make_encode(Constant(), tiny.generator(16))(PHOTO)
    np.testing.assert_array_equal(w, np.full((2, 6, 7), 3.0))


def test_an_encoder_of_another_generator_is_refused():
    with pytest.raises(InputError, match=r"gives codes \[5, 7\], the generator takes"):
        make_encode(tiny.encoder(num_ws=5), tiny.generator(16))


def error(generator, lpips, w, photo):
    image = tiny.jitted(generator.synthesis, lambda m, w: m(w)[0], w)
    distance = tiny.jitted(lpips, lambda m, a, b: m(a, b), image, photo)[0]
    return float(distance + np.mean((image - photo) ** 2))


def test_refinement_comes_nearer_to_the_photo_and_never_farther():
    generator, lpips = tiny.generator(8), tiny.judges().lpips
    w = np.random.default_rng(1).standard_normal((2, 4, 7)).astype(np.float32)
    photo = tiny.jitted(generator.synthesis, lambda m, w: m(w)[0], w[:1])
    refine = make_refine(generator, lpips)
    first = error(generator, lpips, w[1:], photo)
    found = refine(w[1:], photo, 30, 0.05)
    assert error(generator, lpips, found, photo) < 0.7 * first
    wild = refine(w[1:], photo, 5, 100.0)
    assert error(generator, lpips, wild, photo) <= first + 1e-6
    np.testing.assert_array_equal(refine(w[1:], photo, 5, 100.0), wild)


def test_refinement_without_a_finite_error_is_one_line():
    generator, lpips = tiny.generator(8), tiny.judges().lpips
    w = np.full((1, 4, 7), np.nan, np.float32)
    with pytest.raises(UnlearningError, match="no error is finite"):
        make_refine(generator, lpips)(w, np.zeros((1, 8, 8, 3), np.float32), 2, 0.1)
