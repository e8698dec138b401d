"""FID's network against the published PyTorch code, and its own rules."""

import functools
import json

import golden_data
import jax
import numpy as np
import pytest
import tiny
from flax import nnx
from golden_data import nchw, nhwc

from convert import inception as families
from convert.families import family_of
from convert.rules import ConversionError, convert
from guide_jax.checkpoint import flat_leaves, leaf_shapes
from guide_jax.models import inception
from guide_jax.models.inception import Inception

GOLDEN = golden_data.load("inception_fid")
BLOCKS = ("block0", "block1", "block2", "pool3")


@functools.cache
def weights():
    return GOLDEN.weights()


@functools.cache
def converted():
    assert family_of(weights()) is families.INCEPTION
    return convert(weights(), families.INCEPTION)


@functools.cache
def blocks():
    """Returns the blocks' outputs of the fixture's images by name, NumPy."""
    images = 2 * nhwc(GOLDEN.input("img256_01")) - 1
    found = tiny.jitted(converted(), Inception.blocks, images)
    return dict(zip(BLOCKS, map(np.asarray, found), strict=True))


@pytest.mark.parametrize("name", BLOCKS)
def test_golden_inception_fid(name):
    found = blocks()[name]
    assert found.dtype == np.float32
    atol = 5e-5 if name == "pool3" else 5e-4
    GOLDEN.check(name, nchw(found) if found.ndim == 4 else found, atol)
