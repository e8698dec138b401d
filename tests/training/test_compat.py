"""config.compat: noise, rays and dropout are drawn as in the published code."""

import jax
import numpy as np
import pytest
import tiny

from configs import default, demo
from guide_jax import inversion
from guide_jax.config import read
from guide_jax.config_types import Sampling
from guide_jax.errors import InputError
from guide_jax.metrics.evaluator import Evaluator
from guide_jax.models.goae import DROPOUT, GOAE
from guide_jax.models.swin import dropped
from guide_jax.storage import locate
from guide_jax.training.context import make_context
from guide_jax.training.losses import term_weights
from guide_jax.training.step import draw_latents, loss_fn

ONE_OF_EACH = Sampling(1, 1, 15.0, 1.0)


def loss_of_nothing(generator, compat):
    """Returns the terms of a step whose target is the code that is forgotten."""
    training = tiny.training()
    context = make_context(
        generator, tiny.loss_networks(), training.weights, 1e-4, compat=compat
    )
    w = np.random.default_rng(0).standard_normal((1, generator.num_ws, 7), np.float32)

    @jax.jit
    def run(constants, w, key):
        latents = draw_latents(context, constants, ONE_OF_EACH, w, w, key)
        weights = term_weights(context.weights, 1, 1, 1)
        return loss_fn(context, context.source, constants, latents, weights)

    return run(context.constants(), w, jax.random.key(0))


@pytest.mark.parametrize("make", [tiny.generator, tiny.eg3d])
def test_student_and_source_draw_their_own_noise(make):
    _, exact = loss_of_nothing(make(), compat=False)
    _, published = loss_of_nothing(make(), compat=True)
    for name in ("mse", "lpips"):
        assert np.abs(getattr(exact, name)).max() < 1e-6
        assert np.abs(getattr(published, name)).min() > 1e-4


def test_noise_is_normal_and_the_same_in_all_channels():
    layer = tiny.generator().synthesis.b16.conv1
    layer.noise_strength[...] = 0.5 + 0 * layer.noise_strength[...]
    layer.bias[...] = 1e3 + 0 * layer.bias[...]  # so that leaky ReLU is linear
    x, w = np.zeros((2, 16, 16, 4), np.float32), np.zeros((2, 7), np.float32)
    keys = jax.vmap(jax.random.key)(np.uint32([3, 4]))
    run = tiny.jitted
    drawn = np.asarray(run(layer, lambda layer, x, w, k: layer(x, w, k), x, w, keys))
    none = np.asarray(run(layer, lambda layer, x, w: layer(x, w, "none"), x, w))
    noise = (drawn - none) / np.sqrt(2) / 0.5
    np.testing.assert_allclose(noise, noise[..., :1].repeat(4, -1), atol=1e-3)
    assert abs(noise.std() - 1) < 0.1
    assert (
        abs(np.corrcoef(noise[0, ..., 0].ravel(), noise[1, ..., 0].ravel())[0, 1]) < 0.3
    )


def test_layers_have_different_noise():
    generator = tiny.generator()
    w = np.zeros((1, 6, 7), np.float32)

    def activations(seed):
        return tiny.jitted(
            generator.synthesis, lambda m, w, s: m(w, noise_seed=s)[1], w, seed
        )

    first, again, other = (activations(np.uint32([x])) for x in (0, 0, 1))
    for name in ("b4.x", "b8.conv0", "b16.x"):
        np.testing.assert_array_equal(first[name], again[name])
        assert np.abs(first[name] - other[name]).max() > 1e-3


def test_evaluation_draws_other_noise_before_and_after():
    generator, w = tiny.generator(), np.zeros((2, 6, 7), np.float32)
    loss = tiny.loss_networks()
    evaluator = Evaluator(generator, loss.lpips, {}, 2, random_noise=True)
    before, again = (evaluator.images(generator, w) for _ in range(2))
    after = evaluator.images(tiny.generator(), w)
    np.testing.assert_array_equal(before, again)
    assert np.abs(before - after).max() > 1e-3
    assert np.abs(before[0] - before[1]).max() > 1e-3  # one code, two images
    plain = Evaluator(generator, loss.lpips, {}, 2)
    same = [plain.images(x, w) for x in (generator, tiny.generator())]
    np.testing.assert_array_equal(*same)


def test_dropout_and_stochastic_depth_keep_the_mean():
    x = np.ones((400, 3, 8), np.float32)
    single = np.asarray(dropped(x, DROPOUT, jax.random.key(0)))
    assert (single == 0).mean() == pytest.approx(DROPOUT, abs=0.02)
    assert single.mean() == pytest.approx(1, abs=0.02)
    images = np.ones((400, 2, 2, 1), np.float32)
    kept = np.asarray(dropped(images, 0.2, jax.random.key(0), (1, 2, 3)))
    kept = kept.reshape(400, -1)
    assert set(np.unique(kept)) == {0, np.float32(1.25)}
    assert (np.ptp(kept, axis=1) == 0).all()  # whole images
    assert kept.mean() == pytest.approx(1, abs=0.1)


def test_goae_gives_other_codes_in_training_mode():
    shapes = tiny.GOAE_SETTINGS | {"groups": (1, 2, 2)}
    encoder = tiny.random(lambda rngs: GOAE(**shapes, rngs=rngs))
    generator = tiny.eg3d(w_dim=8)
    photo = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    codes = [
        np.asarray(inversion.make_encode(encoder, generator, seed)(photo))
        for seed in (None, 0, 0, 1)
    ]
    np.testing.assert_array_equal(codes[1], codes[2])
    for a, b in ((0, 1), (1, 3)):
        assert np.abs(codes[a] - codes[b]).max() > 1e-3


def test_other_methods_and_generators_are_refused(tmp_path):
    config = demo.get_config()
    config.compat = True
    with pytest.raises(InputError, match=r"compat is for the published method"):
        read(config)
    config = default.get_config()
    paths = tiny.save_small_run(tmp_path)
    for role, path in paths.items():
        config.networks[role].path = str(path)
    config.networks.lpips.path, config.compat = "demo:lpips_alex.npz", True
    config.evaluate.align = "crop"
    with pytest.raises(InputError, match=r"generators, but .* is a mobilestylegan"):
        locate.load_networks(read(config))
