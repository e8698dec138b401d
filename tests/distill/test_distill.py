"""The training loop for the demo's weights, and its inputs and losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from distill import faces, generator, images, student
from distill.training import fit
from guide_jax.models.mobilestylegan import haar_inverse


def squared_error(trainable, statistics, frozen, batch):
    error = ((trainable["w"] * batch - frozen["goal"]) ** 2).mean()
    return error, ({"seen": statistics["seen"] + 1}, {"error": error})


def train(folder, steps, until=None):
    """Trains for `steps` steps; with `until`, interrupts before that step."""

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


def test_an_interrupted_training_resumes_to_the_same_result(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.training.SAVE_EVERY_S", 0.0)
    whole, statistics = train(tmp_path / "whole", 8)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", 8, until=5)
    resumed, _ = train(tmp_path / "broken", 8)
    np.testing.assert_array_equal(whole["w"], resumed["w"])
    assert int(statistics["seen"]) == 8


def test_haar_is_the_inverse_of_haar_inverse():
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(haar_inverse(generator.haar(x)), x, atol=1e-6)


def test_faces_are_averaged_down():
    pixels = np.zeros((1, 4, 4, 3), np.uint8)
    pixels[0, :2, :2] = 255
    small = faces.to_float(pixels, 2)
    np.testing.assert_allclose(small[0, :, :, 0], [[1, -1], [-1, -1]])


def test_image_loss_is_zero_only_for_equal_images():
    a = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))

    def lpips(x, y):
        return jnp.abs(x - y).mean((1, 2, 3))

    assert images.image_loss(a, a, lpips)[0] == 0
    total, terms = images.image_loss(a, a + 0.1, lpips)
    assert float(terms["l1"]) == pytest.approx(0.1, rel=1e-5)
    assert float(terms["edges"]) == pytest.approx(0, abs=1e-6)
    assert float(total) == pytest.approx(0.25, rel=1e-5)


@pytest.mark.full
def test_a_fresh_student_starts_like_its_teacher(monkeypatch):
    teacher = tiny.mobile()
    monkeypatch.setattr(student, "WIDTHS", {4: 8, 8: 5, 16: 4})
    network = student.fresh(teacher, 16)
    z = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    w = student.codes(teacher, z, 0.0)  # w_avg, where the first blocks must agree
    np.testing.assert_array_equal(
        student.codes(network, z, 0.7), w + 0.7 * (student.codes(teacher, z, 1.0) - w)
    )

    def stem(network):
        styles = np.repeat(w[:, None], network.num_ws, axis=1)
        return tiny.jitted(
            network.synthesis, lambda m, w: m(w, noise="none")[1]["b4.x"], styles
        )

    ratio = stem(network) / stem(teacher)  # [N, 4, 4, C]
    assert float(ratio.min()) > 0
    channel = ratio.mean((0, 1, 2))
    np.testing.assert_allclose(ratio, channel[None, None, None] + 0 * ratio, rtol=1e-4)


def test_principal_directions_and_colours_of_activations():
    rng = np.random.default_rng(0)
    sources = rng.standard_normal((5000, 2))
    x = sources @ rng.standard_normal((2, 6)) + 3  # six channels, two dimensions
    image = x[:, :3] * 2 + 1
    rows = np.concatenate([x, np.ones((5000, 1)), image], axis=1)
    view = student._directions(rows.T @ rows / 5000, 2)
    components = x @ view["directions"] - view["origin"]
    np.testing.assert_allclose(components.mean(0), 0, atol=1e-4)
    assert components.var(0).sum() == pytest.approx(2, rel=1e-3)
    # The data is two-dimensional, so the channels can be recovered exactly.
    back, *_ = np.linalg.lstsq(components, x - x.mean(0))
    np.testing.assert_allclose(components @ back, x - x.mean(0), atol=1e-3)
    colours = x @ view["colours"][:-1] + view["colours"][-1]
    np.testing.assert_allclose(colours, image, atol=0.05)
