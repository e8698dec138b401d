"""Test-wide settings: eight devices, full precision, strict types, one cache."""

import atexit
import contextlib
import functools
import gc
import os
import resource
import shutil
import tempfile

# Must be set before JAX starts, which then splits the CPU into eight devices.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

# Many tests compile the same programs: all processes of a session share one cache.
# pytest-xdist's workers and the programs that tests start inherit these variables.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import gpu_tolerances
import jax
import jaxtyping
import optax
import pytest

# Checks the shape annotations. Must run before these modules are imported.
jaxtyping.install_import_hook(
    ["guide_jax.models", "guide_jax.training.losses"], "beartype.beartype"
)

jax.config.update("jax_default_matmul_precision", "highest")
# Broadcasts across ranks and dtype promotions must be written out.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def _promoting(function):
    """Wraps a function to run with JAX's usual dtype promotion."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return wrapped


# Two functions of Optax combine a Python float with an integer step count, which strict
# promotion refuses: Adam's bias correction (`decay**count`) and the cosine schedule.
optax.tree.bias_correction = _promoting(optax.tree.bias_correction)
_cosine_schedule = optax.warmup_cosine_decay_schedule
optax.warmup_cosine_decay_schedule = functools.wraps(_cosine_schedule)(
    lambda *args, **kwargs: _promoting(_cosine_schedule(*args, **kwargs))
)


def pytest_addoption(parser):
    parser.addoption(
        "--gpu",
        choices=tuple(gpu_tolerances.FACTORS),
        help="run on a GPU, in this precision, with the tolerances of gpu_tolerances",
    )


def pytest_configure(config):
    if config.getoption("--gpu"):
        gpu_tolerances.apply(config.getoption("--gpu"))


@pytest.fixture
def limited():
    """Returns a context in which no file grows beyond a size, as on a full disk."""

    @contextlib.contextmanager
    def limit(most):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture(scope="module", autouse=True)
def _free_memory(request):
    """Frees a module's networks and compiled programs when its tests are done."""
    yield
    for value in vars(request.module).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()
    jax.clear_caches()
    gc.collect()
