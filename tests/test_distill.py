"""The training loop of the demo's weights, and what it is fed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import faces, generator, images
from distill.training import fit
from guide_jax.models.mobilestylegan import haar_inverse


def squared_error(trainable, statistics, frozen, batch):
    error = ((trainable["w"] * batch - frozen["goal"]) ** 2).mean()
    return error, ({"seen": statistics["seen"] + 1}, {"error": error})


def train(folder, steps, until=None):
    """Trains to `steps`; with `until`, breaks off before that step."""

    def batch_at(step):
        if step == until:
            raise KeyboardInterrupt
        return np.random.default_rng(step).standard_normal(3).astype(np.float32)

    return fit(
        squared_error,
        {"w": jnp.ones(3)},
        {"seen": jnp.zeros((), jnp.int32)},
        {"goal": jnp.arange(3.0)},
        batch_at,
        steps=steps,
        learning_rate=0.1,
        folder=folder,
    )


def test_training_that_was_broken_off_goes_on_to_the_same_end(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.training.SAVE_EVERY_S", 0.0)
    whole, statistics = train(tmp_path / "whole", 8)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", 8, until=5)
    resumed, _ = train(tmp_path / "broken", 8)
    np.testing.assert_array_equal(whole["w"], resumed["w"])
    assert int(statistics["seen"]) == 8


def test_the_haar_transform_undoes_the_generators_inverse():
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(haar_inverse(generator.haar(x)), x, atol=1e-6)


def test_faces_are_averaged_down():
    pixels = np.zeros((1, 4, 4, 3), np.uint8)
    pixels[0, :2, :2] = 255
    small = faces.to_float(pixels, 2)
    np.testing.assert_allclose(small[0, :, :, 0], [[1, -1], [-1, -1]])


def test_an_image_loss_is_zero_only_for_equal_images():
    a = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))

    def lpips(x, y):
        return jnp.abs(x - y).mean((1, 2, 3))

    assert images.image_loss(a, a, lpips)[0] == 0
    total, terms = images.image_loss(a, a + 0.1, lpips)
    assert float(terms["l1"]) == pytest.approx(0.1, rel=1e-5)
    assert float(terms["edges"]) == pytest.approx(0, abs=1e-6)
    assert float(total) == pytest.approx(0.25, rel=1e-5)
