"""All forms of a convolution give the same result; one that doesn't is not timed."""

import numpy as np
import pytest

from benchmarks import convolutions
from guide_jax.models import ops


@pytest.mark.parametrize("name", convolutions.forms(True))
def test_the_forms_agree(name):
    convolutions.check(convolutions.forms(True)[name][2], name)


def test_another_result_is_refused():
    of = {"right": ops.up_conv, "wrong": lambda x, w: ops.up_conv(x, w[::-1])}
    with pytest.raises(SystemExit, match=r"up, forward: 'wrong' is off by"):
        convolutions.check(of, "up, forward")


def test_phases_agree_pixel_by_pixel():
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(3, 3, 5, 6))
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    found = convolutions.up_conv_phases(x, weight)
    wanted = np.zeros((2, 7, 9, 6))
    for i, j in np.ndindex(3, 4):
        for a, b in np.ndindex(3, 3):
            wanted[:, 2 * i + a, 2 * j + b] += x[:, i, j] @ weight[a, b]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
