"""Keeping freed memory on CPU-only runs, and when it is not kept."""

import os
import platform
import subprocess
import sys

import pytest

# Fills and frees 128 MB twice; prints how many page faults the second time caused.
PAGES = """
import resource
import jax
from guide_jax.experiment.allocator import keep_freed_memory

{prepare}
kept = keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(b"x") * 2**27
    del block
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(prepare="", **environment):
    """Returns whether memory is reported as kept, and the number of page faults."""
    clean = {name: x for name, x in os.environ.items() if "MALLOC" not in name}
    command = sys.executable, "-c", PAGES.format(prepare=prepare)
    done = subprocess.run(
        command,
        env=clean | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_freed_memory_is_kept():
    kept, count = pages()
    assert kept
    assert count < 20


@pytest.mark.parametrize(
    ("prepare", "environment"),
    [
        ("", {"MALLOC_ARENA_MAX": "4"}),
        ("jax.config.update('jax_platforms', 'cuda')", {}),
        ("import ctypes; ctypes.CDLL = lambda _: object()", {}),
    ],
    ids=["the user's own settings", "a GPU", "another library"],
)
def test_freed_memory_is_returned_otherwise(prepare, environment):
    kept, count = pages(prepare, **environment)
    assert not kept
    assert count > 50
