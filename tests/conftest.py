"""Test-wide settings: full-precision matrix products, whatever the machine."""

import jax

jax.config.update("jax_default_matmul_precision", "highest")
