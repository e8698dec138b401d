import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from guide_jax import inversion
from guide_jax.errors import InputError

PHOTO = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32)


def test_code_is_the_mean_plus_what_the_encoder_says():
    generator, encoder = tiny.generator(8), tiny.encoder(num_ws=4)
    w = inversion.invert(encoder, generator, PHOTO)
    assert w.shape == (1, 4, 7)
    difference = tiny.jitted(encoder, lambda m, x: m(x), PHOTO)
    w_avg = generator.mapping.w_avg[...]
    assert jnp.abs(w_avg).max() > 0.1
    np.testing.assert_allclose(w, w_avg + difference, atol=1e-5)


def test_an_encoder_of_one_w_serves_every_layer():
    generator, encoder = tiny.generator(8), tiny.encoder(num_ws=1)
    w = inversion.invert(encoder, generator, PHOTO)
    one = inversion.invert(tiny.encoder(num_ws=4), generator, PHOTO)
    np.testing.assert_allclose(w, one, atol=1e-6)


def test_encoder_of_another_generator_is_refused_in_one_line():
    with pytest.raises(InputError) as caught:
        inversion.invert(tiny.encoder(num_ws=6), tiny.generator(8), PHOTO)
    text = str(caught.value)
    assert "the encoder gives codes [6, 7], the generator takes [4, 7]" in text
    assert "config.networks.encoder" in text
    assert "\n" not in text
