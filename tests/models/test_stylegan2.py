import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_data import load, nchw
from jax.extend import core as jex_core

from convert import stylegan2 as families
from convert.rules import convert
from guide_jax.models import ops
from guide_jax.models.network import fill, leaf_shapes
from guide_jax.models.stylegan2 import StyleGAN2

SMALL = {
    "resolution": 16,
    "channels": (6, 5, 4),
    "z_dim": 8,
    "w_dim": 7,
    "mapping_layers": 3,
}
W_ATOL = 5e-5


def image_atol(resolution):
    return 5e-4 if resolution > 256 else 2e-4


@pytest.fixture(scope="module")
def small():
    """A small generator with nonzero noise and w_avg; must not be modified."""
    return random(**SMALL)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def random(**config):
    """Builds a generator with random leaves; its own initialisation takes seconds."""
    skeleton = nnx.eval_shape(lambda: StyleGAN2(**config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    shapes = leaf_shapes(skeleton).items()
    leaves = {path: rng.standard_normal(shape) for path, shape in shapes}
    return fill(skeleton, leaves)


def run(generator, function, *args):
    """Jits with the weights as arguments, because XLA would fold constants."""
    graph, state = nnx.split(generator)
    return jax.jit(lambda state, *args: function(nnx.merge(graph, state), *args))(
        state, *args
    )


def check_all(golden, computed, atol):
    """Compares all stored outputs; none may be missing."""
    assert set(computed) == set(golden.outputs)
    for name, array in computed.items():
        array = nchw(array) if np.ndim(array) == 4 else np.asarray(array)
        limit = atol if array.ndim == 4 else W_ATOL
        golden.check(name, array, limit)


def test_golden_stylegan2_nv_tiny():
    golden = load("stylegan2_nv_tiny")
    generator = convert(golden.weights(), families.NVLABS)

    def outputs(generator, z, w_plus):
        w = generator.mapping(z)
        w_trunc = generator.mapping(z, psi=0.7, cutoff=4)
        image, activations = generator.synthesis(w)
        return {
            "ws": w,
            "ws_trunc": w_trunc,
            "image_const": image,
            "image_none": generator.synthesis(w, noise="none")[0],
            "image_const_trunc": generator.synthesis(w_trunc)[0],
            "image_const_wplus": generator.synthesis(w_plus)[0],
        } | {name: a for name, a in activations.items() if not name.endswith("conv0")}

    computed = run(generator, outputs, golden.input("z"), golden.input("w_plus"))
    check_all(golden, computed, image_atol(generator.resolution))


@pytest.mark.slow
def test_golden_stylegan2_nv_ffhq1024():
    golden = load("stylegan2_nv_ffhq1024")
    generator = convert(golden.weights(), families.NVLABS)

    def outputs(generator, z):
        w = generator.mapping(z)
        image, activations = generator.synthesis(w)
        return {
            "w": w[:, 0],
            "w_trunc": generator.mapping(z, psi=0.7)[:, 0],
            "image_const": image,
            "image_none": generator.synthesis(w, noise="none")[0],
        } | {name: a for name, a in activations.items() if not name.endswith("conv0")}

    computed = run(generator, outputs, golden.input("z"))
    check_all(golden, computed, image_atol(generator.resolution))


@pytest.mark.parametrize(
    "name",
    [
        "stylegan2_rosinality_256",
        pytest.param("stylegan2_rosinality_1024", marks=pytest.mark.slow),
    ],
)
def test_golden(name):
    golden = load(name)
    generator = convert(golden.weights(), families.ROSINALITY)

    def outputs(generator, z, w_plus):
        image, activations = generator.synthesis(w_plus)
        computed = {"style": generator.mapping(z)[:, 0], "image": image}
        if "image_from_z" in golden.outputs:
            w = generator.mapping(z[:1])
            computed["image_from_z"] = generator.synthesis(w)[0]
        computed |= {"conv1": activations["b4.x"], "to_rgb1": activations["b4.img"]}
        for i, block in enumerate(generator.synthesis.resolutions[1:]):
            computed[f"convs.{2 * i}"] = activations[f"b{block}.conv0"]
            computed[f"convs.{2 * i + 1}"] = activations[f"b{block}.x"]
            computed[f"to_rgbs.{i}"] = activations[f"b{block}.img"]
        return computed

    computed = run(generator, outputs, golden.input("z"), golden.input("w_plus"))
    check_all(golden, computed, image_atol(generator.resolution))


def test_attributes(small):
    assert (small.num_ws, small.resolution) == (6, 16)
    assert (small.z_dim, small.w_dim) == (8, 7)
    assert small.synthesis.feature_name == "b16.x"
    again = nnx.eval_shape(lambda: StyleGAN2(**small.config, rngs=nnx.Rngs(0)))
    assert again.config == small.config
    hash(nnx.graphdef(small))  # static argument of jit


def test_initialisation_is_as_published():
    wide = {"w_dim": 256, "z_dim": 256, "channels": (64, 64, 64)}
    generator = StyleGAN2(**SMALL | wide, rngs=nnx.Rngs(0))
    assert np.std(generator.mapping.fc1.weight[...]) == pytest.approx(100, rel=0.02)
    conv = generator.synthesis.b8.conv0
    assert np.std(conv.weight[...]) == pytest.approx(1, rel=0.02)
    np.testing.assert_array_equal(conv.affine.bias[...], 1)
    np.testing.assert_array_equal(conv.bias[...], 0)
    assert conv.noise_strength[...] == 0
    # The purpose of the scaling: everything has about unit variance.
    z = jax.random.normal(jax.random.key(1), (16, 256))
    w, activations = run(
        generator, lambda g, z: (g.mapping(z), g.synthesis(g.mapping(z))[1]), z
    )
    for array in (w, *(activations[name] for name in ("b4.x", "b8.x", "b16.x"))):
        assert 0.2 < np.sqrt(np.mean(np.square(array))) < 2


def test_trainable_leaves(small):
    buffers = nnx.to_flat_state(nnx.state(small, ops.Buffer))
    names = {".".join(map(str, path)) for path, _ in buffers}
    convs = ("b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1")
    assert names == {"mapping.w_avg"} | {
        f"synthesis.{conv}.noise_const" for conv in convs
    }


def test_truncation(small):
    z = jax.random.normal(jax.random.key(0), (2, 8))
    w, w_avg = small.mapping(z), small.mapping.w_avg[...][None, None]
    assert w.shape == (2, 6, 7)
    np.testing.assert_allclose(
        small.mapping(z * 3), w, atol=1e-6
    )  # only the direction counts
    np.testing.assert_allclose(
        small.mapping(z, psi=0.0), np.broadcast_to(w_avg, w.shape)
    )
    half = small.mapping(z, psi=0.5, cutoff=2)
    np.testing.assert_allclose(half[:, :2], (w[:, :2] + w_avg) / 2, atol=1e-6)
    np.testing.assert_array_equal(half[:, 2:], w[:, 2:])


def test_wrong_arguments_raise(small):
    with pytest.raises(ValueError, match=r"\[1, 5, 7\].*6"):
        small.synthesis(jnp.zeros((1, 5, 7)))
    with pytest.raises(ValueError, match=r"\[6, 7\]"):
        small.synthesis(jnp.zeros((6, 7)))
    with pytest.raises(ValueError, match="random"):
        small.synthesis(jnp.zeros((1, 6, 7)), noise="random")
    with pytest.raises(ValueError, match="32"):
        StyleGAN2(**SMALL | {"resolution": 32}, rngs=nnx.Rngs(0))


def test_each_vector_affects_its_layers_first(small):
    w = jax.random.normal(jax.random.key(0), (1, 6, 7))
    _, before = small.synthesis(w)
    first_changed = []
    for i in range(6):
        _, after = small.synthesis(w.at[0, i].add(1.0))
        changed = [
            name for name in before if not np.allclose(before[name], after[name])
        ]
        first_changed.append(changed[0])
    # A block's image and the next block's conv0 share a vector; the image is first.
    assert first_changed == ["b4.x", "b4.img", "b8.x", "b8.img", "b16.x", "b16.img"]


def test_jit_equals_plain_and_keeps_float32(small):
    w = small.mapping(jax.random.normal(jax.random.key(0), (2, 8)))
    image, activations = run(small, lambda g, w: g.synthesis(w), w)
    plain, _ = small.synthesis(w)
    np.testing.assert_allclose(image, plain, atol=1e-5)
    assert {a.dtype for a in jax.tree.leaves((w, image, activations))} == {
        np.dtype("float32")
    }


@pytest.mark.usefixtures("x64")
def test_float64_stays_float64(small):
    graph, state = nnx.split(small)
    small = nnx.merge(graph, jax.tree.map(lambda a: a.astype("float64"), state))
    z = jnp.ones((1, 8), "float64")
    out = run(small, lambda g, z: g.synthesis(g.mapping(z, psi=0.5)), z)
    assert {a.dtype for a in jax.tree.leaves(out)} == {np.dtype("float64")}


def test_conv_clamp():
    free = random(**SMALL)
    clamped = random(**SMALL, conv_clamp=0.5)
    w = jax.random.normal(jax.random.key(0), (1, 6, 7))
    before, after = (
        run(generator, lambda g, w: g.synthesis(w)[1], w)
        for generator in (free, clamped)
    )
    assert np.abs(before["b4.x"]).max() > 0.5
    np.testing.assert_allclose(
        after["b4.x"], np.clip(before["b4.x"], -0.5, 0.5), atol=1e-6
    )
    for name in ("b8.conv0", "b8.x", "b16.x", "b4.img"):
        assert np.abs(after[name]).max() <= 0.5


def grouped_conv(x, weight, style):
    """Modulated convolution by definition: a normalised kernel per example."""
    kernels = weight[None] * style[:, None, None, :, None]
    norm = jnp.sqrt(jnp.sum(kernels**2, axis=(1, 2, 3), keepdims=True) + 1e-8)
    return jnp.concatenate(
        [ops.conv(x[i : i + 1], kernel) for i, kernel in enumerate(kernels / norm)]
    )


@pytest.mark.usefixtures("x64")
def test_modulated_conv_equals_a_kernel_per_example():
    x, weight, style = (
        jax.random.normal(jax.random.key(i), shape, "float64")
        for i, shape in enumerate([(2, 5, 6, 3), (3, 3, 3, 4), (2, 3)])
    )
    np.testing.assert_allclose(
        ops.modulated_conv(x, weight, style), grouped_conv(x, weight, style), rtol=1e-9
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("k", [1, 3])
def test_up_conv_gradients_equal_autodiff(k):
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 3), "float64")
    weight = jax.random.normal(jax.random.key(1), (k, k, 3, 2), "float64")

    def scattered(x, weight):
        """The definition: input pixel i adds x[i] * weight[j] to output 2i + j."""
        n, h, w, _ = x.shape
        y = jnp.zeros((n, 2 * h + k - 2, 2 * w + k - 2, weight.shape[-1]), x.dtype)
        for i in range(k):
            for j in range(k):
                y = y.at[:, i : i + 2 * h : 2, j : j + 2 * w : 2].add(x @ weight[i, j])
        return y

    def plain(x, weight):
        return ops.up_conv.__wrapped__(x, weight)

    y, pull = jax.vjp(ops.up_conv, x, weight)
    np.testing.assert_allclose(y, scattered(x, weight), atol=1e-12)
    y_bar = jax.random.normal(jax.random.key(2), y.shape, "float64")
    for other in (scattered, plain):
        for ours, theirs in zip(
            pull(y_bar), jax.vjp(other, x, weight)[1](y_bar), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)

    def second(function):
        """The gradient of a gradient's norm, as in regularisers."""
        inner = jax.grad(lambda x, w: jnp.sum(function(x, w) ** 3), argnums=1)
        return jax.grad(lambda x: jnp.sum(inner(x, weight) ** 2))(x)

    np.testing.assert_allclose(second(ops.up_conv), second(scattered), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_resampling_equals_the_dense_filter():
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 2))
    taps = np.array([1, 3, 3, 1]) / 8

    def dense(x, pad):
        x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (4, 4), (1, 2))
        return np.einsum("nhwcij,i,j->nhwc", windows, taps, taps)

    np.testing.assert_allclose(ops.fir_filter(x, (2, 1)), dense(x, (2, 1)), atol=1e-12)
    stuffed = np.zeros((1, 8, 12, 2))
    stuffed[:, ::2, ::2] = x
    np.testing.assert_allclose(
        ops.upsample(jnp.asarray(x)), 4 * dense(stuffed, (2, 1)), atol=1e-12
    )


def test_convolutions_run_in_the_given_dtype_and_images_stay_float32(small):
    w = jax.random.normal(jax.random.key(0), (2, 6, 7))
    graph, state = nnx.split(small.synthesis)

    def look(state, w):
        return nnx.merge(graph, state)(w, dtype="bfloat16")

    image, activations = jax.eval_shape(look, state, w)
    assert image.dtype == "float32"
    for name, a in activations.items():
        assert a.dtype == ("float32" if name.endswith("img") else "bfloat16"), name

    gradient = jax.grad(lambda state, w: (look(state, w)[0] ** 2).sum())
    kinds = set()

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "conv_general_dilated":
                kinds.update(x.aval.dtype.name for x in eqn.invars + eqn.outvars)
            for inner in jex_core.jaxprs_in_params(eqn.params):
                walk(inner)

    walk(jax.make_jaxpr(gradient)(state, w).jaxpr)
    assert kinds == {"bfloat16"}

    got = jax.jit(look)(state, w)[0]
    wanted = small.synthesis(w)[0]
    error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert 1e-4 < error < 2e-2
