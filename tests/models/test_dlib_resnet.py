"""Compares dlib's face recognition network with dlib itself; other properties."""

import functools

import dlib_rule
import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert.dlib_file import FAMILY
from convert.rules import convert
from guide_jax.models import dlib_resnet
from guide_jax.models.dlib_resnet import DlibResNet, embed, face_crop
from guide_jax.models.network import jitted
from guide_jax.storage.locate import BUNDLE
from guide_jax.storage.network_file import load_network, save_network

JUDGE = BUNDLE / "judge_dlib.npz"


@functools.cache
def golden():
    with np.load(golden_data.FOLDER / "dlib_resnet.npz") as archive:
        return dict(archive)


@functools.cache
def small():
    """Returns the network with generated weights, which dlib has read too."""
    return convert(dlib_rule.weights(), FAMILY)


def in_range(images):
    """Maps uint8 to float32 in [-1, 1]."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def raw(network, crops):
    return np.asarray(jitted(network, lambda network, x: network(x))(crops))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_embeddings_equal_those_of_dlib():
    found = raw(small(), in_range(golden()["chips"]))
    np.testing.assert_allclose(found, golden()["small"], rtol=0, atol=1e-5)
    # The faces differ by much more.
    assert np.ptp(golden()["small"], axis=0).min() > 0.05


@pytest.mark.slow
@pytest.mark.skipif(not JUDGE.exists(), reason="the bundle has no dlib network")
def test_the_bundled_network_embeds_as_dlib_does():
    # The file keeps 6 bits of mantissa, which moves embeddings by up to 0.006, measured
    # on 200 faces. Unrounded: 6e-7.
    network = load_network(JUDGE)
    found, wanted = raw(network, in_range(golden()["chips"])), golden()["embeddings"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.008)
    cosines = np.sum(unit(found) * unit(wanted), axis=1)
    assert cosines.min() > 0.9998  # different people: 0.84


def test_the_published_network_is_the_default():
    network = nnx.eval_shape(lambda: DlibResNet(rngs=nnx.Rngs(0)))
    convs = [leaf for path, leaf in nnx.iter_graph(network) if path[-1:] == ("kernel",)]
    assert len(convs) == 29 + 1  # the last is the dense layer
    assert network.linear.kernel.shape == (256, 128)


@pytest.mark.slow
def test_embed_crops_and_normalises():
    network = small()
    images = jax.random.uniform(jax.random.key(0), (2, 64, 64, 3), minval=-1, maxval=1)
    found = jitted(network, embed)(images)
    wanted = unit(raw(network, face_crop(images)))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


# Where the crop shrinks the image, averaging moves a pixel by up to a tenth of a pixel.
@pytest.mark.parametrize(
    ("H", "W", "atol"), [(64, 64, 1e-5), (256, 256, 4e-4), (512, 256, 4e-4)]
)
def test_the_crop_lies_at_the_same_place_at_any_size(H, W, atol):
    rows, columns = np.meshgrid(  # positions as fractions of the side
        (np.arange(H) + 0.5) / H, (np.arange(W) + 0.5) / W, indexing="ij"
    )
    image = np.stack([rows, columns, np.zeros((H, W))], axis=-1).astype(np.float32)
    crop = face_crop(image[None])[0]
    places = (np.arange(150) + 0.5) / 150 * dlib_resnet.CROP_SIDE
    np.testing.assert_allclose(crop[:, 0, 0], dlib_resnet.CROP_TOP + places, atol=atol)
    np.testing.assert_allclose(crop[0, :, 1], dlib_resnet.CROP_LEFT + places, atol=atol)


def test_shrinking_averages_pixels():
    stripes = jnp.where(jnp.arange(1024) % 2, 1.0, -1.0)
    image = jnp.broadcast_to(stripes[None, :, None], (1024, 1024, 3))
    assert np.abs(face_crop(image[None])).max() < 0.1


def test_halving_drops_an_odd_last_row_and_column():
    x = np.arange(5 * 3, dtype=np.float32).reshape(1, 5, 3, 1)
    found = dlib_resnet.half(x)
    assert found.shape == (1, 2, 1, 1)
    np.testing.assert_array_equal(found[0, :, 0, 0], [2, 8])


def test_a_sum_pads_either_term_with_zeros_at_the_end():
    a, b = np.ones((1, 3, 3, 6), np.float32), np.ones((1, 4, 4, 4), np.float32)
    found = dlib_resnet.padded_sum(a, b)
    wanted = np.zeros((1, 4, 4, 6))
    wanted[:, :3, :3] += 1
    wanted[..., :4] += 1
    np.testing.assert_array_equal(found, wanted)


def test_crops_of_another_size_are_an_error():
    with pytest.raises(ValueError, match=r"takes \[N, 150, 150, 3\]"):
        small()(jnp.zeros((1, 112, 112, 3)))


def test_a_missing_width_is_an_error():
    with pytest.raises(ValueError, match="5 stages need as many widths"):
        DlibResNet((4, 8), rngs=nnx.Rngs(0))


def test_saving_keeps_the_config(tmp_path):
    network = small()
    save_network(tmp_path / "network.npz", network)
    loaded = load_network(tmp_path / "network.npz")
    assert loaded.config == {"widths": dlib_rule.WIDTHS, "embedding_dim": 5}
    crops = in_range(golden()["chips"])
    np.testing.assert_array_equal(raw(loaded, crops), raw(network, crops))
