"""Test-wide settings: full-precision matrix products, and programs compiled once."""

import atexit
import shutil
import tempfile

import jax

jax.config.update("jax_default_matmul_precision", "highest")

# The same small networks are compiled again and again; here the same program only once.
_cache = tempfile.mkdtemp()
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
