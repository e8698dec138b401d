"""The only place where tests get other tolerances than on a CPU: `pytest --gpu=...`.

    pytest --gpu=float32 tests/models    # full float32; sums in another order
    pytest --gpu=tf32 tests/models       # TF32, the default of config.precision

Every tolerance that a test gives to NumPy's `assert_allclose` is multiplied by the
precision's factor, but not beyond `MOST`. Convolutions on a GPU sum in another order
and by other algorithms (Winograd, FFT) than on a CPU. TF32 rounds the inputs of
convolutions and matrix products to 10 bits of mantissa, an error of 2^-11, where
float32 has 2^-24.
"""

import functools

import jax
import numpy as np
import pytest

# precision -> factor on tolerances, and JAX's name of the precision
FACTORS = {"float32": (10, "highest"), "tf32": (1000, "tensorfloat32")}
# The compared values are of the order of 1, so a larger tolerance would prove nothing.
MOST = 0.05


def apply(precision: str) -> None:
    """Sets the precision, and loosens the tolerances.

    Raises:
        pytest.UsageError: JAX does not run on a GPU.
    """
    if jax.default_backend() != "gpu":
        raise pytest.UsageError(
            f"--gpu={precision} loosens tolerances, which is only for GPUs; JAX runs on"
            f" {jax.default_backend()}"
        )
    factor, name = FACTORS[precision]
    jax.config.update("jax_default_matmul_precision", name)
    np.testing.assert_allclose = loosened(np.testing.assert_allclose, factor)


def loosened(compare, factor: float):
    """Wraps `assert_allclose` so that its tolerances are multiplied by a factor."""

    @functools.wraps(compare)
    def wrapped(actual, desired, rtol=1e-7, atol=0, **settings):
        rtol, atol = (max(x, min(x * factor, MOST)) for x in (rtol, atol))
        return compare(actual, desired, rtol=rtol, atol=atol, **settings)

    return wrapped
