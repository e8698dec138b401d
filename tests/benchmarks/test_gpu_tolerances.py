"""Tolerances are loosened on GPUs only, in one place, and within limits."""

import gpu_tolerances
import jax
import numpy as np
import pytest


def test_tolerances_stay_as_they_are_without_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    before = np.testing.assert_allclose
    with pytest.raises(pytest.UsageError, match="only for GPUs; JAX runs on cpu"):
        gpu_tolerances.apply("tf32")
    assert np.testing.assert_allclose is before
    assert jax.config.jax_default_matmul_precision == "highest"


def test_tolerances_are_multiplied_but_bounded():
    compare = gpu_tolerances.loosened(np.testing.assert_allclose, 1000)
    compare(1.009, 1.0, rtol=1e-5)
    with pytest.raises(AssertionError):
        compare(1.011, 1.0, rtol=1e-5)
    compare(0.049, 0.0, rtol=0, atol=1e-3)
    with pytest.raises(AssertionError):  # 0.05 at most
        compare(0.051, 0.0, rtol=0, atol=1e-3)
    compare(0.07, 0.0, atol=0.08)  # never stricter than the test
