"""Time, processor time and memory of ways to do the same work, taken by turns."""

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
    """Seconds that a step took, one number for each turn.

    Attributes:
        wall: on the clock.
        cpu: of all of the process's threads together.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def by_turns(
    ways: Mapping[str, Callable[[int], None]], turns: int, steps: int
) -> dict[str, Timing]:
    """Times every way once a turn, in an order that goes round.

    Args:
        ways: name -> a function that does so many steps and waits for the last.
        turns: how many.
        steps: of each way in a turn.
    """
    found = {name: Timing() for name in ways}
    names = list(ways)
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            wall, cpu = time.perf_counter(), time.process_time()
            ways[name](steps)
            found[name].wall.append((time.perf_counter() - wall) / steps)
            found[name].cpu.append((time.process_time() - cpu) / steps)
    return found


def seconds(function: Callable[[], object]) -> float:
    """Returns how long a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def spread(values: list[float]) -> str:
    """Returns the median, with the least and the most."""
    middle = statistics.median(values)
    return f"{middle:.3g} ({min(values):.3g}-{max(values):.3g})"


def host_peak(run: Callable[[int], None]) -> int | None:
    """Returns the bytes that a step needs at most beyond those held before it.

    None where Linux doesn't tell.
    """
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
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
    """As `host_peak`, of a GPU's memory; the way's first step, which compiles, is it.

    None where the step needs less than something before it: JAX tells the peak of the
    whole process, and doesn't forget it.
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
    """Has JAX keep compiled programs in a new folder, whatever time they took."""
    names = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs")
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for name, value in zip(before, (folder, 0), strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # or it stays with the folder it has
        try:
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def show(rows: list[list[str]]) -> None:
    """Prints rows in columns, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *values in rows:
        line = [name.ljust(widths[0])]
        line += [x.rjust(n) for x, n in zip(values, widths[1:], strict=True)]
        print("  ".join(line))
