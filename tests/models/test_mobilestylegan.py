import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from jax import lax

from convert import mobilestylegan as published
from convert.rules import convert
from guide_jax.models import mobilestylegan, ops
from guide_jax.models.generator import z_of_seed
from guide_jax.storage.locate import BUNDLE
from guide_jax.storage.network_file import load_network

WHEEL = "GUIDE_RANDOM_FACE_WHEEL"  # environment variable: path of the published wheel


@pytest.fixture(scope="module")
def small():
    return tiny.mobile()


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def w_of(seed, count=1):
    return np.random.default_rng(seed).standard_normal((count, 8, 7)).astype("float32")


@pytest.mark.usefixtures("x64")
def test_depthwise_and_its_gradients_equal_a_grouped_convolution():
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 5, 7, 4)), rng.standard_normal((3, 3, 4))

    def grouped(x, kernel):
        return lax.conv_general_dilated(
            x, kernel[:, :, None], (1, 1), "SAME",
            dimension_numbers=ops.CONV_DIMS, feature_group_count=4,
        )  # fmt: skip

    y, pull = jax.vjp(mobilestylegan.depthwise, x, kernel)
    wanted, wanted_pull = jax.vjp(grouped, x, kernel)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, wanted, atol=1e-12)
    y_bar = rng.standard_normal(y.shape)
    for ours, theirs in zip(pull(y_bar), wanted_pull(y_bar), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_haar_inverse_equals_its_direct_formula():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 8)).astype(np.float32)
    got = mobilestylegan.haar_inverse(x)
    assert got.shape == (2, 6, 8, 2)
    for channel in range(2):
        low = x[..., channel]
        vertical, horizontal, diagonal = (x[..., 2 + 3 * channel + i] for i in range(3))
        for dy in range(2):
            for dx in range(2):
                wanted = 0.5 * (
                    low
                    + (-1) ** dy * vertical
                    + (-1) ** dx * horizontal
                    + (-1) ** (dx + dy) * diagonal
                )
                np.testing.assert_allclose(
                    got[:, dy::2, dx::2, channel], wanted, atol=1e-6
                )


def test_haar_inverse_is_orthonormal():
    basis = np.eye(2 * 1 * 8, dtype=np.float32).reshape(-1, 2, 1, 8)
    matrix = np.asarray(mobilestylegan.haar_inverse(basis)).reshape(16, 16)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(16), atol=1e-6)


def test_head_equals_modulation_followed_by_a_convolution(small):
    head, rng = small.synthesis.head, np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 4, 6)), rng.standard_normal((2, 7))
    x, w = x.astype(np.float32), w.astype(np.float32)
    got = tiny.jitted(head, lambda head, x, w: head(x, w), x, w)
    leaves = tiny.flat(head)
    style = w @ leaves["affine.weight"] + leaves["affine.bias"]  # [N, C]
    modulated = x * style[:, None, None] / np.sqrt(6)
    wavelets = modulated @ leaves["weight"] + leaves["bias"]
    np.testing.assert_allclose(got, mobilestylegan.haar_inverse(wavelets), atol=1e-4)


def test_separable_convolution_equals_one_dense_kernel(small):
    conv, rng = small.synthesis.b8.conv0, np.random.default_rng(0)
    x, w = rng.standard_normal((1, 8, 8, 2)), rng.standard_normal((1, 7))
    x, w = x.astype(np.float32), w.astype(np.float32)
    got = tiny.jitted(conv, lambda conv, x, w: conv(x, w, "const"), x, w)
    leaves = tiny.flat(conv)
    style = (w @ leaves["affine.weight"] + leaves["affine.bias"])[0] / np.sqrt(9 * 2)
    kernel = (leaves["depthwise"] * style)[..., None] * leaves["pointwise"]
    y = np.asarray(ops.conv(x, jnp.asarray(kernel))) + leaves["bias"]
    y = y + leaves["noise_const"][None, ..., None]
    np.testing.assert_allclose(got, np.where(y > 0, y, 0.2 * y), atol=1e-4)


def test_sizes_and_activations(small):
    assert (small.num_ws, small.resolution) == (2 + 3 * 2, 32)
    assert small.synthesis.feature_name == "b16.x"
    image, activations = jax.eval_shape(small.synthesis, w_of(0, 2))
    assert image.shape == (2, 32, 32, 3)
    assert {name: a.shape for name, a in activations.items()} == {
        "b4.x": (2, 4, 4, 8),
        "b8.conv0": (2, 8, 8, 8),
        "b8.x": (2, 8, 8, 8),
        "b16.conv0": (2, 16, 16, 6),
        "b16.x": (2, 16, 16, 6),
    }


def test_a_wrong_number_of_styles_or_noise_mode_is_rejected(small):
    with pytest.raises(ValueError, match=r"\[1, 7, 7\].*\[N, 8, D\]"):
        small.synthesis(w_of(0)[:, :7])
    with pytest.raises(ValueError, match="fresh"):
        small.synthesis(w_of(0), noise="fresh")


def test_each_style_affects_its_layer_first(small):
    w = w_of(0)
    batch = np.repeat(w, 9, axis=0)
    batch[np.arange(8), np.arange(8)] += 1  # the last row stays unchanged
    image, activations = tiny.jitted(small.synthesis, lambda m, w: m(w), batch)
    outputs = activations | {"image": image}
    names = (
        "b4.x",
        "b8.conv0",
        "b8.x",
        "b16.conv0",
        "b16.x",
        "image",
    )  # as executed

    def changes(name, i):
        return not np.allclose(outputs[name][i], outputs[name][8])

    first_changed = [next(name for name in names if changes(name, i)) for i in range(8)]
    b8, b16 = ["b8.conv0", "b8.conv0", "b8.x"], ["b16.conv0", "b16.conv0", "b16.x"]
    assert first_changed == ["b4.x", *b8, *b16, "image"]


def test_noise_is_stored_but_not_trained_and_can_be_disabled(small):
    buffers = nnx.to_flat_state(nnx.state(small.synthesis, ops.Buffer))
    assert {path[-1] for path, _ in buffers} == {"noise_const"}
    assert len(buffers) == 5  # one per convolution
    both = lambda m, w: (m(w)[1], m(w, noise="none")[1])  # noqa: E731
    noisy, plain = tiny.jitted(small.synthesis, both, w_of(0))
    assert not any(np.allclose(noisy[name], plain[name]) for name in noisy)


def test_bfloat16_is_close_to_float32_and_images_stay_float32():
    # Wide enough for rounding errors to average out, whatever XLA fuses.
    small = tiny.mobile(channels=(32, 32, 16))
    graph, state, rest = nnx.split(small.synthesis, nnx.Param, ...)
    w = w_of(0, 2)

    @functools.partial(jax.jit, static_argnums=1)
    def both(state, dtype):
        def energy(state):
            image, activations = nnx.merge(graph, state, rest)(w, dtype=dtype)
            return (image**2).mean(), (image, activations)

        return jax.grad(energy, has_aux=True)(state)

    gradient, (image, activations) = both(state, "bfloat16")
    true_gradient, (true_image, _) = both(state, None)
    assert {a.dtype.name for a in activations.values()} == {"bfloat16"}
    assert {a.dtype.name for a in jax.tree.leaves((image, gradient))} == {"float32"}
    assert 1e-4 < relative_error(image, true_image) < 2e-2
    for ours, wanted in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(true_gradient), strict=True
    ):
        assert np.linalg.norm(ours - wanted) < 5e-2 * np.linalg.norm(wanted)


# OpenVINO's values, recorded by tests/data/record_openvino.py -------------------------


@pytest.fixture(scope="module")
def recorded():
    with np.load(
        Path(__file__).parents[1] / "data" / "mobilestylegan_openvino.npz"
    ) as npz:
        return dict(npz)


def z():
    return np.concatenate([z_of_seed(seed, 512) for seed in (0, 1)])


def relative_error(got, wanted):
    return np.sqrt(np.mean((np.asarray(got) - wanted) ** 2) / np.mean(wanted**2))


def test_bundled_generator_reproduces_the_published_features(recorded):
    """Its mapping and first three levels are the published ones, rounded."""
    generator = load_network(BUNDLE / "mobilestylegan_128.npz")
    w = tiny.jitted(generator.mapping, lambda m, z: m(z), z())
    assert relative_error(w[:, 0], recorded["w"]) < 2e-2
    w = np.repeat(recorded["w"][:, None], generator.num_ws, axis=1)
    features = tiny.jitted(generator.synthesis, lambda m, w: m(w)[1]["b16.x"], w)
    assert relative_error(features[:, ::4, ::4, ::8], recorded["features"]) < 1e-2


@pytest.mark.slow
@pytest.mark.skipif(
    WHEEL not in os.environ, reason=f"{WHEEL} names no random_face wheel"
)
def test_published_network_reproduces_openvinos_images(recorded):
    state = published.read(os.environ[WHEEL])
    generator = convert(state, published.MOBILESTYLEGAN)
    w = tiny.jitted(generator.mapping, lambda m, z: m(z), z())
    np.testing.assert_allclose(w[:, 0], recorded["w"], atol=2e-5)
    np.testing.assert_array_equal(w[:, 0], w[:, -1])
    assert generator.resolution == 1024
    graph, state = nnx.split(generator.synthesis)
    synthesise = jax.jit(lambda state, w: nnx.merge(graph, state)(w))
    for i in range(2):
        codes = np.repeat(recorded["w"][i : i + 1, None], generator.num_ws, axis=1)
        image, activations = synthesise(state, codes)
        features = activations["b16.x"][0, ::4, ::4, ::8]
        np.testing.assert_allclose(features, recorded["features"][i], atol=5e-5)
        pixels = image[0, 16::32, 16::32]
        np.testing.assert_allclose(pixels, recorded["pixels"][i], atol=1e-4)
        np.testing.assert_allclose(
            image[0].mean((0, 1)), recorded["mean"][i], atol=1e-5
        )
        np.testing.assert_allclose(image[0].std((0, 1)), recorded["std"][i], atol=1e-5)
