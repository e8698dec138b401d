"""Compares FID and its network with the published PyTorch code; other properties."""

import functools

import golden_data
import numpy as np
import pytest
import tiny
from flax import nnx
from golden_data import nchw, nhwc

from convert.inception import INCEPTION
from convert.registry import family_of
from convert.rules import ConversionError, convert
from guide_jax.metrics import fid_statistics
from guide_jax.models import inception
from guide_jax.models.inception import Inception
from guide_jax.models.network import leaf_shapes

BLOCKS = ("block0", "block1", "block2", "pool3")


@functools.cache
def golden():
    return golden_data.load("inception_fid")


@functools.cache
def blocks():
    """Returns the blocks' outputs for the fixture's images, by name, as NumPy."""
    network = convert(golden().weights(), INCEPTION)
    images = 2 * nhwc(golden().input("img256_01")) - 1
    found = tiny.jitted(network, Inception.blocks, images)
    return dict(zip(BLOCKS, map(np.asarray, found), strict=True))


@pytest.mark.parametrize("name", BLOCKS)
def test_golden_inception_fid_blocks(name):
    found = blocks()[name]
    assert found.dtype == np.float32
    atol = 5e-5 if name == "pool3" else 5e-4
    golden().check(name, nchw(found) if found.ndim == 4 else found, atol)


@pytest.mark.parametrize("name", ["fid_ab", "fid_mixed", "fid_aa"])
def test_golden_inception_fid_distance(name):
    a, b, mix = (
        np.float64(golden().input(f"fid_{name}"))
        for name in ("feats_a", "feats_b", "mix")
    )
    pairs = {"fid_ab": (a, b), "fid_mixed": (a @ mix, b), "fid_aa": (a, a)}
    found = fid_statistics.distance(*map(fid_statistics.Statistics.of, pairs[name]))
    wanted = golden().info["scalars"][name]["f64"]
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


@functools.cache
def published():
    """Returns the fixture's keys with zeros of their shapes, without using memory."""
    zero = np.zeros((), np.float32)
    entries = golden().info["entries"]
    return {e["name"]: np.broadcast_to(zero, e["shape"]) for e in entries}


def converted(state):
    """Returns the leaf shapes of the converted network."""
    assert family_of(state) is INCEPTION
    return leaf_shapes(convert(state, INCEPTION))


def test_conversion_ignores_unneeded_tensors():
    network = nnx.eval_shape(lambda: Inception(rngs=nnx.Rngs(0)))
    wanted = leaf_shapes(network)
    assert len(wanted) == 94 * 5  # a kernel and the batch norm's four vectors
    assert wanted["mixed_7c.branch3x3dbl_3b.conv.kernel"] == (3, 1, 384, 384)
    state = published()
    assert converted(state) == wanted
    small = {
        key: array
        for key, array in state.items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    assert len(small) == 94 * 5
    assert converted(small) == wanted
    aux = {"AuxLogits.conv0.conv.weight": np.zeros((128, 768, 1, 1))}
    assert converted(state | aux) == wanted


def test_torchvisions_weights_are_rejected():
    state = published() | {"fc.weight": np.zeros((1000, 2048))}
    with pytest.raises(ConversionError, match=r"\[1000, 2048\].*1008 classes"):
        convert(state, INCEPTION)


def test_a_files_faults_are_reported():
    state = published() | {"Mixed_8a.branch1x1.conv.weight": np.zeros((1, 1, 1, 1))}
    del state["Mixed_6c.branch7x7_2.bn.running_var"]
    with pytest.raises(ConversionError) as caught:
        convert(state, INCEPTION)
    assert "no tensor for mixed_6c.branch7x7_2.bn.var" in str(caught.value)
    assert "'Mixed_8a.branch1x1.conv.weight' maps to mixed" in str(caught.value)


@pytest.mark.parametrize(("name", "reduce"), [("average", np.mean), ("maximum", max)])
def test_pools_exclude_the_padding(name, reduce):
    x = np.random.default_rng(0).uniform(-2, -1, (1, 5, 4, 1)).astype(np.float32)
    found = inception.POOLS[name](x)
    assert found.shape == x.shape
    for i in range(5):
        for j in range(4):
            window = x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].ravel()
            np.testing.assert_allclose(found[0, i, j, 0], reduce(window), rtol=1e-6)
