"""Compares GOAE's encoder with the published PyTorch code; other properties."""

import functools

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from golden_data import nhwc
from PIL import Image

from convert import goae as family
from convert.rules import convert
from guide_jax import inversion
from guide_jax.errors import InputError
from guide_jax.models import swin
from guide_jax.models.goae import GOAE
from guide_jax.models.network import flat_leaves
from guide_jax.storage import locate
from guide_jax.storage.network_file import load_network, save_network

# Published code -----------------------------------------------------------------------

MAPS = ("x_fine", "x_mid", "x_coarse", "x_query", "x_base")


@functools.cache
def outputs() -> dict[str, np.ndarray]:
    """Returns what the fixture stores, by name, in its layout."""
    golden = golden_data.load("goae_encoder")
    encoder = convert(golden.weights(), family.GOAE)

    def run(encoder, images):
        base, _ = encoder.parts(images)
        return encoder.trunk(images), base, encoder(images)

    maps, base, w = tiny.jitted(encoder, run, nhwc(golden.input("img256")))
    found = {
        name: np.asarray(x).reshape(1, -1, x.shape[-1])
        for name, x in zip(MAPS, maps, strict=True)
    }
    for name in ("x_query", "x_base"):
        found[name] = found[name].swapaxes(1, 2)
    return found | {"w": np.asarray(w), "w_base": np.repeat(base, w.shape[1], 1)}


@pytest.mark.full
@pytest.mark.parametrize("name", [*MAPS, "w", "w_base"])
def test_golden_goae_encoder(name):
    golden = golden_data.load("goae_encoder")
    golden.check(name, outputs()[name], 10 * golden.info["f32_vs_f64_max_abs"][name])


def test_golden_goae_encoder_constants():
    stored = golden_data.load("goae_encoder").stored
    for name, wanted in stored.items():
        if name.startswith("relative_coords_table_1x31"):
            np.testing.assert_allclose(swin.coordinates(16, 12)[None], wanted, 1e-6)
        elif name.startswith("relative_coords_table_1x15"):
            np.testing.assert_allclose(swin.coordinates(8, 6)[None], wanted, 1e-6)
        elif name.startswith("relative_position_index"):
            window = int(len(wanted) ** 0.5)
            np.testing.assert_array_equal(swin.offsets(window), wanted)
        elif name.startswith("attn_mask"):
            region = swin.regions({16: 64, 4: 32}[len(wanted)], 16, 8)
            apart = region[:, None] != region[:, :, None]
            np.testing.assert_array_equal(apart, wanted == -100)


# A small encoder ----------------------------------------------------------------------


@functools.cache
def small() -> GOAE:
    return convert(tiny.goae_state(), family.GOAE)


@functools.cache
def program():
    """Returns the jitted encoder, a function of the weights and the images."""
    graph, _ = nnx.split(small())
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x))


def encode(encoder, images) -> np.ndarray:
    return np.asarray(program()(nnx.state(encoder), images))


def images(*shape) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (*shape, 3)).astype(np.float32)


def test_config_and_layouts_are_read_from_the_file():
    encoder, state = small(), tiny.goae_state()
    assert encoder.config == tiny.GOAE_SETTINGS
    assert (encoder.num_ws, encoder.w_dim) == (5, 8)
    leaves, layer = flat_leaves(encoder), "swin_model.layers.0.blocks.1"
    in_proj = state["cross_att_mid.multihead_attn.in_proj_weight"]
    for path, wanted in {
        "trunk.embed.kernel": state["swin_model.patch_embed.proj.weight"].transpose(
            2, 3, 1, 0
        ),
        "trunk.blocks.0.1.attention.qkv.kernel": state[f"{layer}.attn.qkv.weight"].T,
        "trunk.blocks.0.1.attention.log_scale": state[f"{layer}.attn.logit_scale"][
            :, 0, 0
        ],
        "trunk.blocks.0.1.norm2.scale": state[f"{layer}.norm2.weight"],
        "trunk.merges.1.linear.kernel": state[
            "swin_model.layers.1.downsample.reduction.weight"
        ].T,
        "attentions.1.query.kernel": in_proj[:8].T,
        "attentions.1.value.kernel": in_proj[16:].T,
        "queries.2.channel.layers.1.bias": state["mapper_query_channel_fine.2.bias"],
        "channels.2.layers.1.kernel": state["mapper_fine_channel.2.weight"].T,
        "enlarge.0.layers.1.kernel": state["mapper_coarse_to_mid_spatial.2.weight"].T,
    }.items():
        np.testing.assert_array_equal(leaves[path], wanted, err_msg=path)


def test_images_are_encoded_one_by_one():
    x, encoder = images(2, 64, 64), small()
    w = encode(encoder, x)
    assert (w.shape, w.dtype) == ((2, 5, 8), np.float32)
    np.testing.assert_allclose(w[1:], encode(encoder, x[1:]), atol=1e-5)
    assert np.abs(w[0] - w[1]).max() > 0.01


@pytest.mark.parametrize("side", [128, 40])
def test_images_of_other_sizes_are_resized_as_by_pillow(side):
    x, encoder = images(1, side, side), small()
    channels = [
        Image.fromarray(x[0, ..., i]).resize((64, 64), Image.Resampling.BICUBIC)
        for i in range(3)
    ]
    wanted = encode(encoder, np.stack(channels, -1)[None])
    np.testing.assert_allclose(encode(encoder, x), wanted, atol=1e-4)


# Code 0 is the base alone; then the groups have one, two and one.
@pytest.mark.parametrize(
    ("tensor", "moved"),
    [
        ("mapper_base_channel.2.bias", [0, 1, 2, 3, 4]),
        ("mapper_query_channel_coarse.2.bias", [1]),
        ("mapper_query_channel_mid.2.bias", [2, 3]),
        ("cross_att_fine.linear2.bias", [4]),
        ("mapper_coarse_channel.0.bias", [1, 2, 3, 4]),
        ("mapper_mid_channel.0.bias", [2, 3, 4]),
        ("mapper_fine_channel.2.bias", [4]),
    ],
)
def test_finer_groups_read_coarser_maps_but_not_the_reverse(tensor, moved):
    x, shape = images(1, 64, 64), tiny.goae_state()[tensor].shape
    change = {tensor: np.random.default_rng(1).standard_normal(shape) * 3}
    other = convert(tiny.goae_state() | change, family.GOAE)
    difference = encode(other, x) - encode(small(), x)
    found = np.abs(difference).max((0, 2)) > 1e-4
    np.testing.assert_array_equal(np.flatnonzero(found), moved)


def test_saving_and_loading_restores_the_encoder(tmp_path):
    encoder = small()
    save_network(tmp_path / "x.npz", encoder)
    again = load_network(tmp_path / "x.npz")
    assert (type(again), again.config) == (GOAE, encoder.config)
    assert again.kind in locate.KINDS["encoder"]
    for path, leaf in flat_leaves(encoder).items():
        np.testing.assert_array_equal(flat_leaves(again)[path], leaf, err_msg=path)


def test_codes_must_fit_the_generator():
    with pytest.raises(InputError, match=r"outputs codes \[5, 8\].* takes \[6, 7\]"):
        inversion.make_encode(small(), tiny.generator(16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": (1, 2)}, r"3 groups of layers and 4 stages, not 2 and \[4, 4, 4\]"),
        ({"heads": (1, 1, 2)}, r"not 3 and \[4, 3, 4\]"),
        ({"w_dim": 7}, "w_dim is 7; it must divide by 4"),
        (
            {"input_size": 48},
            "48 pixels can't be reduced to 4 stages; .* multiple of 3",
        ),
        ({"window": 5}, "stage 0 of the trunk: 16 pixels and 4 channels"),
        ({"heads": (1, 3, 2, 2)}, "stage 1 .* 8 channels .* windows of 4 and 3 heads"),
    ],
)
def test_sizes_that_do_not_fit_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        GOAE(**{**tiny.GOAE_SETTINGS, **change}, rngs=nnx.Rngs(0))


# Windows ------------------------------------------------------------------------------


def reached(shift, row, column) -> np.ndarray:
    """Returns which pixels of an 8 pixel map see one pixel through a block."""
    block = tiny.random(
        lambda rngs: swin.Block(4, 2, 4, 4, shift, rngs=rngs),
    )
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    moved = x.at[0, row, column].add(1.0)
    run = jax.jit(lambda x: block(x))
    return np.asarray(jnp.abs(run(moved) - run(x)).max((0, 3)) > 1e-6)


@pytest.mark.parametrize(
    ("shift", "pixel", "rows", "columns"),
    [
        (0, (1, 5), (0, 4), (4, 8)),
        (2, (3, 4), (2, 6), (2, 6)),
        # At the map's edges, the shifted windows are cut, and don't wrap around.
        (2, (0, 0), (0, 2), (0, 2)),
        (2, (7, 3), (6, 8), (2, 6)),
        (2, (4, 7), (2, 6), (6, 8)),
    ],
)
def test_pixels_see_their_window(shift, pixel, rows, columns):
    wanted = np.zeros((8, 8), bool)
    wanted[slice(*rows), slice(*columns)] = True
    np.testing.assert_array_equal(reached(shift, *pixel), wanted)


def test_large_scales_of_the_cosines_are_limited():
    layer = tiny.random(lambda rngs: swin.Attention(4, 2, 2, 2, rngs=rngs))
    x = jax.random.normal(jax.random.key(0), (1, 1, 4, 4))
    found = []
    for log_scale in (np.log(100), 9.0, np.log(50)):
        layer.log_scale[...] = jnp.full((2,), log_scale, jnp.float32)
        found.append(np.asarray(layer(x, None)))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[2] - found[0]).max() > 1e-6
