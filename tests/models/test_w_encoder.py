import jax
import numpy as np
import pytest
import tiny
from flax import nnx

from guide_jax.models.w_encoder import WEncoder
from guide_jax.storage.network_file import load_network, save_network


@pytest.fixture(scope="module")
def encoder():
    return tiny.encoder(num_ws=3)


def encode(encoder, images):
    return np.asarray(tiny.jitted(encoder, lambda m, x: m(x), images))


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 20, 13, 3)])
def test_images_of_any_size_give_one_w_repeated_for_every_layer(encoder, shape):
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    w = encode(encoder, images)
    assert w.shape == (shape[0], 3, 7)
    assert w.dtype == np.float32
    for layer in (1, 2):
        np.testing.assert_array_equal(w[:, layer], w[:, 0])


def test_larger_images_are_averaged(encoder):
    small = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    large = small.repeat(2, axis=1).repeat(3, axis=2)
    noise = np.random.default_rng(1).uniform(-0.1, 0.1, (2, 8, 8, 3))
    large[:, ::2] += noise.repeat(3, axis=2)  # averages to zero
    large[:, 1::2] -= noise.repeat(3, axis=2)
    w = encode(encoder, small)
    np.testing.assert_allclose(encode(encoder, large), w, atol=1e-4)
    assert np.abs(w[0] - w[1]).max() > 0.01


def test_saving_and_loading_restores_the_encoder_and_its_config(encoder, tmp_path):
    save_network(tmp_path / "x.npz", encoder)
    again = load_network(tmp_path / "x.npz")
    assert type(again) is WEncoder
    assert again.config == encoder.config
    assert (again.num_ws, again.w_dim, again.input_size) == (3, 7, 8)
    assert jax.tree.structure(nnx.state(again)) == jax.tree.structure(
        nnx.state(encoder)
    )
