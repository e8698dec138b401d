"""Compares the identity encoders with the published PyTorch code; other properties."""

import functools
import json

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_data import nchw, nhwc

from convert import arcface as families
from convert.rules import ConversionError, convert
from guide_jax.models.arcface import IRNet, embed
from guide_jax.models.network import fill, leaf_shapes
from guide_jax.models.resample import crop_matrix, identity_crop, resize

NARROW = {
    "units": (1, 2, 1),
    "widths": (8, 8, 16, 24),
    "embedding_dim": 20,
    "input_size": 20,
}


@functools.cache
def converted(name: str):
    """Returns a fixture's network as graph and state."""
    family = {"arcface_ir_se50": families.IR_SE, "curricularface_ir101": families.IR}
    weights = golden_data.load(name).weights()
    assert family[name].recognises(weights)
    return nnx.split(convert(weights, family[name]))


def jitted(name: str, function):
    """Returns images -> function(network, images), jitted, weights as arguments."""
    graph, state = converted(name)
    compiled = jax.jit(lambda state, *args: function(nnx.merge(graph, state), *args))
    return functools.partial(compiled, state)


def activations(network: IRNet, crops):
    """Returns the activations that the fixtures store, by name."""
    x = network.stem(crops)
    found = {"input_layer": x}
    for i, block in enumerate(network.blocks):
        x = block(x)
        found[f"body.{i}"] = x
    found["output_layer"] = network.head(x)
    return found


def check_blocks(name: str):
    golden = golden_data.load(name)
    found = jitted(name, activations)(nhwc(golden.input("img112")))
    wanted = [
        key for key in golden.outputs if key.startswith(("input_", "body.", "output_"))
    ]
    assert wanted
    for key in wanted:
        full = np.asarray(found[key])
        full = nchw(full) if full.ndim == 4 else full
        atol = max(1e-6, 10 * golden.info["f32_vs_f64_max_abs"][key])
        golden.check(key, full, atol)


def test_golden_arcface_ir_se50_blocks():
    check_blocks("arcface_ir_se50")


def test_golden_arcface_ir_se50_embedding():
    golden = golden_data.load("arcface_ir_se50")
    found = jitted("arcface_ir_se50", IRNet.__call__)(nhwc(golden.input("img112")))
    golden.check("emb112", found, atol=5e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("size", [256, 512, 1024])
def test_golden_arcface_ir_se50_identity_crop(size):
    golden = golden_data.load("arcface_ir_se50")
    crop = jax.jit(identity_crop)(nhwc(golden.input(f"img{size}")))
    golden.check(f"facenet_input{size}", nchw(crop), atol=1e-6)


@pytest.mark.parametrize("size", [256, 512, 1024])
def test_golden_arcface_ir_se50_embed(size):
    golden = golden_data.load("arcface_ir_se50")
    found = jitted("arcface_ir_se50", embed)(nhwc(golden.input(f"img{size}")))
    golden.check(f"extract_feats{size}", found, atol=5e-6)


def test_golden_arcface_ir_se50_losses():
    golden = golden_data.load("arcface_ir_se50")
    run = jitted("arcface_ir_se50", embed)

    def enlarged(name):
        low = nhwc(golden.input(name))
        shape = (low.shape[0], 256, 256, 3)
        return np.asarray(jax.image.resize(low, shape, "bilinear"))

    pairs = {
        "idloss256": [nhwc(golden.input(name)) for name in ("img256", "img256_b")],
        "idloss512": [nhwc(golden.input(name)) for name in ("img512", "img512_b")],
        "idloss256_smooth": [enlarged(name) for name in ("low8_a", "low8_b")],
    }
    assert pairs.keys() == golden.info["scalars"].keys()
    for name, (a, b) in pairs.items():
        # The published loss: 1 - cosine, mean over the batch.
        loss = 1 - np.sum(np.float64(run(a)) * np.float64(run(b)), axis=1).mean()
        wanted = golden.info["scalars"][name]["f64"]
        np.testing.assert_allclose(loss, wanted, atol=2e-6, rtol=0, err_msg=name)


def test_golden_curricularface_ir101_blocks():
    check_blocks("curricularface_ir101")


def test_golden_curricularface_ir101_embedding():
    golden = golden_data.load("curricularface_ir101")
    run = jitted("curricularface_ir101", IRNet.__call__)
    images = [nhwc(golden.input(name)) for name in ("img112", "img112_b")]
    a, b = np.asarray(run(np.concatenate(images)))
    golden.check("emb112", a[None], atol=5e-6)
    golden.check("emb112_b", b[None], atol=5e-6)
    wanted = golden.info["scalars"]["cosine"]["f64"]
    np.testing.assert_allclose(np.dot(a, b), wanted, atol=2e-6, rtol=0)


def test_a_file_without_its_head_is_rejected():
    state = golden_data.load("arcface_ir_se50").weights()
    del state["output_layer.3.weight"]
    assert not families.IR_SE.recognises(state)
    with pytest.raises(ConversionError, match=r"output_layer\.3\.weight"):
        convert(state, families.IR_SE)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resizing to a square without antialiasing, pixel by pixel."""
    H, W = image.shape[:2]
    out = np.empty((size, size, image.shape[2]))
    for i in range(size):
        y = min(max((i + 0.5) * H / size - 0.5, 0), H - 1)
        top, bottom = image[int(y)], image[min(int(y) + 1, H - 1)]
        row = top + (y - int(y)) * (bottom - top)  # [W, C]
        for j in range(size):
            x = min(max((j + 0.5) * W / size - 0.5, 0), W - 1)
            left, right = row[int(x)], row[min(int(x) + 1, W - 1)]
            out[i, j] = left + (x - int(x)) * (right - left)
    return out


def pooled(image: np.ndarray, size: int) -> np.ndarray:
    """Adaptive average pooling, window by window."""
    H, W = image.shape[:2]
    out = np.empty((size, size, image.shape[2]))
    for i in range(size):
        for j in range(size):
            top, bottom = int(np.floor(i * H / size)), int(np.ceil((i + 1) * H / size))
            left, right = int(np.floor(j * W / size)), int(np.ceil((j + 1) * W / size))
            out[i, j] = image[top:bottom, left:right].mean((0, 1))
    return out


@pytest.mark.parametrize(
    ("H", "W", "size"), [(256, 256, 112), (64, 64, 56), (300, 270, 64), (512, 512, 20)]
)
def test_identity_crop_is_resize_crop_pool(H, W, size):
    image = np.random.default_rng(0).uniform(-1, 1, (H, W, 3)).astype(np.float32)
    wanted = pooled(resized(image, 256)[35:223, 32:220], size)
    found = jax.jit(identity_crop, static_argnums=1)(image[None], size)
    assert found.shape == (1, size, size, 3)
    np.testing.assert_allclose(found[0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("H", "W", "size"), [(32, 32, 75), (64, 50, 23), (41, 90, 60), (20, 20, 20)]
)
def test_resize_is_bilinear_without_antialiasing(H, W, size):
    image = np.random.default_rng(0).uniform(-1, 1, (H, W, 3)).astype(np.float32)
    found = jax.jit(resize, static_argnums=1)(image[None], size)
    assert found.shape == (1, size, size, 3)
    np.testing.assert_allclose(found[0], resized(image, size), atol=1e-6)


def test_crop_matrix_keeps_brightness_and_is_cached():
    matrix = crop_matrix(1024, 112, 35, 223)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-12)
    assert crop_matrix(1024, 112, 35, 223) is matrix


@functools.cache
def narrow(se: bool = True):
    """Returns a narrow random network as graph and state."""
    network = nnx.eval_shape(lambda: IRNet(**NARROW, se=se, rngs=nnx.Rngs(0)))
    # Drawn by NumPy, because flax's initialisation compiles for seconds per network.
    rng = np.random.default_rng(0)
    leaves = {}
    for path, shape in leaf_shapes(network).items():
        kind = path.rpartition(".")[2]
        if kind == "kernel":
            leaves[path] = rng.standard_normal(shape) / np.prod(shape[:-1]) ** 0.5
        else:
            fixed = {"scale": 1, "var": 1, "slope": 0.25, "bias": 0, "mean": 0}
            leaves[path] = np.full(shape, fixed[kind])
    return nnx.split(fill(network, leaves))


@pytest.mark.parametrize("se", [True, False])
def test_narrow_network(se):
    graph, state = narrow(se)
    run = jax.jit(lambda state, images: embed(nnx.merge(graph, state), images))
    images = jax.random.uniform(jax.random.key(0), (3, 32, 32, 3), minval=-1)
    embeddings = run(state, images)
    assert embeddings.shape == (3, 20)
    assert embeddings.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    # In eval mode, the rest of the batch has no influence.
    np.testing.assert_allclose(run(state, images[:1]), embeddings[:1], atol=1e-6)
    # The config rebuilds the same network.
    config = json.loads(json.dumps(nnx.merge(graph, state).config))
    again = nnx.eval_shape(lambda: IRNet(**config, rngs=nnx.Rngs(0)))
    assert nnx.split(again)[0] == graph


def test_float64_stays_float64():
    with jax.enable_x64(True):
        graph, state = narrow()
        state = jax.tree.map(lambda x: np.asarray(x, np.float64), state)
        images = np.zeros((1, 32, 32, 3))
        found = jax.eval_shape(
            lambda s, x: embed(nnx.merge(graph, s), x), state, images
        )
        assert found.dtype == jnp.float64


def test_train_mode_updates_the_batch_statistics():
    network = nnx.merge(*narrow(), copy=True)
    crops = jax.random.uniform(jax.random.key(1), (4, 20, 20, 3), minval=-1)
    network.train()
    graph, params, stats = nnx.split(network, nnx.Param, nnx.BatchStat)

    @jax.jit
    def step(params, stats, crops):
        def loss(params):
            network = nnx.merge(graph, params, stats, copy=True)
            return network(crops)[:, 0].sum(), nnx.state(network, nnx.BatchStat)

        (_, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return gradient, stats

    gradient, updated = step(params, stats, crops)
    old = dict(nnx.to_flat_state(stats))
    for path, new in nnx.to_flat_state(updated):
        assert not np.array_equal(old[path][...], new[...]), path
    for path, leaf in nnx.to_flat_state(gradient):
        assert np.isfinite(leaf[...]).all(), path
    mean = network.stem.conv(crops).mean((0, 1, 2))
    found = updated["stem"]["norm"]["mean"][...]
    np.testing.assert_allclose(found, 0.1 * mean, atol=1e-6)

    network = nnx.merge(graph, params, updated)
    network.eval()
    graph, state = nnx.split(network)
    run = jax.jit(lambda state, crops: nnx.merge(graph, state)(crops))
    before = run(narrow()[1], crops)
    assert not np.allclose(run(state, crops), before, atol=1e-3)


def test_wrong_sizes_are_reported():
    network = nnx.merge(*narrow())
    with pytest.raises(ValueError, match=r"\[1, 24, 24, 3\].*20, 20, 3"):
        network(jnp.zeros((1, 24, 24, 3)))
    with pytest.raises(ValueError, match="2 stages need 3 widths"):
        IRNet(units=(1, 1), widths=(8, 8), rngs=nnx.Rngs(0))
