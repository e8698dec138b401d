import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from guide_jax.models import ops


def test_wrong_shapes_raise_while_tests_run():
    weight = jnp.ones((3, 3, 4, 5))
    assert ops.conv(np.ones((1, 8, 8, 4), np.float32), weight).shape == (1, 8, 8, 5)
    for wrong in [(8, 8, 4), (1, 8, 8, 5)]:
        with pytest.raises(jaxtyping.TypeCheckError, match=r"ops\.(_plain_)?conv"):
            ops.conv(jnp.ones(wrong), weight)


def test_wrong_dtypes_raise_while_tests_run():
    with pytest.raises(jaxtyping.TypeCheckError, match="upsample"):
        ops.upsample(jnp.ones((1, 8, 8, 3), "int32"))
