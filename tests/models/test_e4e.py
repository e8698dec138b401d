"""Compares the encoder e4e with the published PyTorch code; other properties."""

import functools

import golden_data
import jax
import numpy as np
import pytest
import tiny
from flax import nnx
from golden_data import nchw, nhwc

from convert import e4e as family
from convert.contents import find
from convert.rules import ConversionError, convert
from guide_jax import inversion
from guide_jax.errors import InputError
from guide_jax.models import resample
from guide_jax.models.e4e import E4E
from guide_jax.models.network import flat_leaves
from guide_jax.storage import locate
from guide_jax.storage.network_file import load_network, save_network

BODY = ("body.6", "body.20", "body.23")
OPTS = {"encoder_type": "Encoder4Editing", "start_from_latent_avg": True}


# Published code -----------------------------------------------------------------------


@functools.cache
def converted() -> dict[str, nnx.Module]:
    """Returns the two networks in the fixture's file."""
    golden = golden_data.load("e4e_ffhq")
    data = {
        "state_dict": golden.weights(),
        **golden.weights("extra_entries"),
        "opts": OPTS,
    }
    found = find(data)
    parts = found.kind.split(found.state, print)
    del data, found
    # Converted one at a time, because together they hold 300 million values.
    return {
        name: convert(state, kind)
        for name, (kind, state) in ((name, parts.pop(name)) for name in list(parts))
    }


def photos() -> np.ndarray:
    return nhwc(golden_data.load("e4e_ffhq").input("img256"))


@functools.cache
def activations() -> dict[str, np.ndarray]:
    """Returns the activations that the fixture stores, by name, in its layout."""

    def run(encoder, images):
        stages = encoder.trunk(images)
        maps = encoder.pyramid(stages)
        styles = {
            f"styles.{i}": encoder.styles[i](maps[level])
            for i, level in {0: 0, 3: 1, 7: 2, 17: 2}.items()
        }
        return dict(zip(BODY, stages, strict=True)) | styles

    found = tiny.jitted(converted()["encoder"], run, photos())
    return {name: nchw(x) if x.ndim == 4 else x for name, x in found.items()}


@functools.cache
def codes() -> np.ndarray:
    """Returns the encoder's codes of the fixture's photos."""
    return tiny.jitted(converted()["encoder"], lambda m, x: m(x), photos())


@pytest.fixture(scope="module", autouse=True)
def memory():
    """Frees the memory of the fixture's 300 million values after this module."""
    yield
    converted.cache_clear()


@pytest.mark.full
@pytest.mark.parametrize(
    "name", [*BODY, "styles.0", "styles.3", "styles.7", "styles.17"]
)
def test_golden_e4e_ffhq_activations(name):
    golden = golden_data.load("e4e_ffhq")
    atol = max(1e-6, 10 * golden.info["f32_vs_f64_max_abs"][name])
    golden.check(name, activations()[name], atol)


@pytest.mark.full
def test_golden_e4e_ffhq_codes_no_avg():
    golden_data.load("e4e_ffhq").check("codes_no_avg", codes(), atol=5e-5)


@pytest.mark.full
def test_golden_e4e_ffhq_codes():
    w = codes() + converted()["encoder"].w_avg[...][None]
    golden_data.load("e4e_ffhq").check("codes", w, atol=5e-5)


@pytest.mark.full
def test_golden_e4e_ffhq_latents_from_forward():
    nets = converted()
    w = inversion.make_encode(nets["encoder"], nets["generator"])(photos()[:1])
    golden_data.load("e4e_ffhq").check("latents_from_forward", w, atol=5e-5)


@pytest.mark.full
def test_golden_e4e_ffhq_image_face_pool():
    nets = converted()
    w = codes()[:1] + nets["encoder"].w_avg[...][None]
    image = tiny.jitted(nets["generator"], lambda m, w: m.synthesis(w)[0], w)
    assert image.shape == (1, 1024, 1024, 3)
    found = nchw(jax.jit(resample.average_pool, static_argnums=1)(image, 256))
    golden_data.load("e4e_ffhq").check("image_face_pool", found, atol=5e-4)


# A small encoder ----------------------------------------------------------------------


def small(**changes) -> E4E:
    """Returns the small encoder with some tensors replaced."""
    return convert(tiny.e4e_state() | {"opts": OPTS} | changes, family.ENCODER)


def encode(encoder, images) -> np.ndarray:
    return np.asarray(tiny.jitted(encoder, lambda m, x: m(x), images))


def images(*shape) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (*shape, 3)).astype(np.float32)


def test_config_and_layouts_are_read_from_the_file():
    encoder, state = small(), tiny.e4e_state()
    assert encoder.config == {
        "num_ws": 8,
        "w_dim": 7,
        "input_size": 16,
        "units": tiny.E4E_UNITS,
        "widths": tiny.E4E_WIDTHS,
    }
    leaves = flat_leaves(encoder)
    for path, wanted in {
        "w_avg": state["latent_avg"],
        "blocks.1.shortcut_norm.var": state["body.1.shortcut_layer.1.running_var"],
        "laterals.1.kernel": state["latlayer2.weight"].transpose(2, 3, 1, 0),
        "styles.7.convs.2.kernel": state["styles.7.convs.4.weight"].transpose(
            2, 3, 1, 0
        ),
        "styles.3.convs.1.bias": state["styles.3.convs.2.bias"],
        "styles.2.linear.weight": state["styles.2.linear.weight"].T,
    }.items():
        np.testing.assert_array_equal(leaves[path], wanted, err_msg=path)


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 40, 23), (1, 5, 9)])
def test_images_of_any_size_are_averaged_first(shape):
    x, encoder = images(*shape), small()
    w = encode(encoder, x)
    assert w.shape == (shape[0], 8, 7)
    assert w.dtype == np.float32
    rows, columns = (resample.pool_matrix(n, 16) for n in shape[1:])
    x = np.einsum("sh,nhwc,tw->nstc", rows, x, columns).astype(np.float32)
    np.testing.assert_allclose(w, encode(encoder, x), atol=1e-4)


def test_every_code_is_the_first_plus_an_offset():
    w = encode(small(), images(1, 16, 16))
    gone = {f"styles.5.linear.{leaf}": np.zeros(n) for leaf, n in OF_LINEAR.items()}
    without = encode(small(**gone), images(1, 16, 16))
    np.testing.assert_allclose(without[:, 5], w[:, 0], atol=1e-5)
    assert np.abs(w[:, 5] - w[:, 0]).max() > 0.01
    others = np.arange(8) != 5
    np.testing.assert_allclose(without[:, others], w[:, others], atol=1e-5)


OF_LINEAR = {"weight": (7, 7), "bias": (7,)}


@pytest.mark.parametrize(("lateral", "first"), [(1, 3), (2, 7)])
def test_finer_maps_affect_only_later_codes(lateral, first):
    w = encode(small(), images(1, 16, 16))
    bias = {f"latlayer{lateral}.bias": np.ones(tiny.E4E_WIDTHS[-1])}
    moved = np.abs(encode(small(**bias), images(1, 16, 16)) - w).max((0, 2)) > 1e-4
    np.testing.assert_array_equal(moved, np.arange(8) >= first)


def test_doubling_maps_keeps_the_corners():
    matrix = resample.bilinear_matrix(3, 6, align_corners=True)
    found = matrix @ [0.0, 5.0, 20.0]
    np.testing.assert_allclose(found, [0, 2, 4, 8, 14, 20])


def test_saving_and_loading_restores_the_encoder(tmp_path):
    encoder = small()
    save_network(tmp_path / "x.npz", encoder)
    again = load_network(tmp_path / "x.npz")
    assert (type(again), again.config) == (E4E, encoder.config)
    assert again.kind in locate.KINDS["encoder"]
    for path, leaf in flat_leaves(encoder).items():
        np.testing.assert_array_equal(flat_leaves(again)[path], leaf, err_msg=path)


def test_inversion_adds_the_encoders_mean():
    encoder, photo = small(), images(2, 32, 32)
    w = inversion.make_encode(encoder, tiny.generator(32))(photo)
    np.testing.assert_allclose(
        w, encoder.w_avg[...][None] + encode(encoder, photo), atol=1e-5
    )
    with pytest.raises(InputError, match=r"outputs codes \[8, 7\].* takes \[6, 7\]"):
        inversion.make_encode(encoder, tiny.generator(16))
    again = inversion.make_encode(encoder, tiny.mobile())(photo)
    np.testing.assert_allclose(again, w)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": (1, 1), "widths": (4, 4, 6)}, "2 stages reduce 16 pixels to 4"),
        ({"input_size": 24}, "reduce 24 pixels to 3$"),
        ({"input_size": 18}, "reduce 18 pixels to 2.25"),
        ({"input_size": 8}, "reduce 8 pixels to 1$"),
        ({"widths": (4, 4, 6)}, "3 stages need 4 widths"),
    ],
)
def test_sizes_unfit_for_the_pyramid_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        E4E(**{**small().config, **change}, rngs=nnx.Rngs(0))


def test_no_mean_is_added_to_codes_trained_without_it():
    opts = OPTS | {"start_from_latent_avg": False}
    assert not np.asarray(small(opts=opts).w_avg[...]).any()
    state = tiny.e4e_state() | {"opts": OPTS}
    del state["latent_avg"]
    with pytest.raises(ConversionError, match="'latent_avg' is missing"):
        convert(state, family.ENCODER)
