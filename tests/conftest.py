"""Test-wide settings: several CPU devices, full-precision matrix products."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)

import jax

jax.config.update("jax_default_matmul_precision", "highest")
