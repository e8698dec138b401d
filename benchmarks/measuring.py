"""Measures wall time, CPU time and peak memory of variants of the same work."""

import contextlib
import ctypes
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache


@dataclass
class Timing:
    """Seconds per step, one value per turn.

    Attributes:
        wall: wall-clock time.
        cpu: CPU time of all threads of the process.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def by_turns(
    runs: Mapping[str, Callable[[int], None]], turns: int, steps: int
) -> dict[str, Timing]:
    """Times every variant once per turn, in an order that rotates by one each turn.

    Args:
        runs: name -> function that runs a given number of steps and waits for the last.
        turns: number of turns.
        steps: steps of each variant per turn.
    """
    timings = {name: Timing() for name in runs}
    names = list(runs)
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            wall, cpu = time.perf_counter(), time.process_time()
            runs[name](steps)
            timings[name].wall.append((time.perf_counter() - wall) / steps)
            timings[name].cpu.append((time.process_time() - cpu) / steps)
    return timings


def seconds(function: Callable[[], object]) -> float:
    """Returns the wall time of a call, in seconds."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def spread(values: list[float]) -> str:
    """Formats values as "median (minimum-maximum)"."""
    middle = statistics.median(values)
    return f"{middle:.3g} ({min(values):.3g}-{max(values):.3g})"


def host_peak(run: Callable[[int], None]) -> int | None:
    """Returns a step's peak memory in bytes, beyond what was held before it.

    None if the system does not report it.
    """
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
        before = _status("VmRSS")
        run(1)
        return _status("VmHWM") - before
    except OSError:
        return None


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def jax_gpu_peak(run: Callable[[int], None]) -> int | None:
    """Returns the peak GPU memory of a variant's first step, as `host_peak` does.

    The first step also compiles. None if it needs less than anything before it, because
    JAX reports the peak of the whole process and cannot reset it.
    """
    device = jax.local_devices()[0]
    before = device.memory_stats()
    run(1)
    after = device.memory_stats()
    if not after or after["peak_bytes_in_use"] == before["peak_bytes_in_use"]:
        return None
    return after["peak_bytes_in_use"] - before["bytes_in_use"]


@contextlib.contextmanager
def empty_cache() -> Iterator[None]:
    """Makes JAX cache every compiled program in a new, temporary folder."""
    names = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs")
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for name, value in zip(before, (folder, 0), strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # otherwise it keeps using the old folder
        try:
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def show(rows: list[list[str]]) -> None:
    """Prints rows in columns: the first left-aligned, the rest right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *values in rows:
        line = [name.ljust(widths[0])]
        line += [x.rjust(n) for x, n in zip(values, widths[1:], strict=True)]
        print("  ".join(line))
