"""Test-wide settings: eight devices, full precision, programs compiled once."""

import atexit
import os
import shutil
import tempfile

# Before JAX looks: it takes the CPU for so many devices.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax

jax.config.update("jax_default_matmul_precision", "highest")

# The same small networks are compiled again and again; here the same program only once.
_cache = tempfile.mkdtemp()
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
