"""The results of `benchmarks.step`: a table to print, and records."""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax

from benchmarks import measuring
from benchmarks.records import Record


class Prepared(NamedTuple):
    """A compiled variant and what was measured while compiling it.

    Attributes:
        run: runs a given number of steps and waits for the last.
        loss: step 0's loss.
        gradient: norm of step 0's gradient.
        first: seconds of the first step, which compiles.
        cached: the same with the program in the compilation cache.
        peak: a step's peak memory in bytes beyond what was held before.
        planned: bytes that XLA allocates for a step's temporaries.
    """

    run: Callable[[int], None]
    loss: float
    gradient: float
    first: float | None
    cached: float | None
    peak: int | None
    planned: int | None = None


def platform() -> str:
    """Returns 'cpu' or 'gpu'."""
    return jax.default_backend()


HEADER = (
    "variant",
    "s/step",
    "CPU s/step",
    "x",
    "x CPU",
    "first s",
    "cached s",
    "peak MB",
)


def table(
    prepared: dict[str, Prepared],
    timings: dict[str, measuring.Timing],
    flop: int | None,
    peaks: dict[str, tuple[float, float]],
) -> list[list[str]]:
    """Returns the rows to print; ratios are relative to the first variant's time.

    Without `flop`, there are no columns about arithmetic.
    """
    cpu = platform() == "cpu"
    per = "CPU s" if cpu else "s"
    arithmetic = [f"GFLOP/{per}", *(f"of {name}" for name in peaks)]
    rows = [[*HEADER, *(arithmetic if flop else ())]]
    first = timings[next(iter(prepared))]
    for name, variant in prepared.items():
        timing = timings[name]
        ratios = (
            statistics.median(mine) / statistics.median(base)
            for mine, base in ((timing.wall, first.wall), (timing.cpu, first.cpu))
        )
        seconds = (variant.first, variant.cached)
        row = [
            name,
            measuring.spread(timing.wall),
            measuring.spread(timing.cpu),
            *(f"{ratio:.2f}" for ratio in ratios),
            *("-" if value is None else f"{value:.1f}" for value in seconds),
            "-" if variant.peak is None else f"{variant.peak / 1e6:.0f}",
        ]
        if flop:
            speed = flop / statistics.median(timing.cpu if cpu else timing.wall)
            shares = (f"{speed / peak[cpu]:.0%}" for peak in peaks.values())
            row += [f"{speed / 1e9:.1f}", *shares]
        rows.append(row)
    return rows


def records(
    prepared: dict[str, Prepared],
    timings: dict[str, measuring.Timing],
    flop: int | None,
    peaks: dict[str, tuple[float, float]],
) -> list[Record]:
    """Returns a record for each variant; the arguments are those of `table`.

    "of bf16" and so on are shares of the measured matrix peaks, per CPU-second on a
    CPU.
    """
    cpu = platform() == "cpu"
    first = statistics.median(timings[next(iter(prepared))].wall)
    rows = []
    for name, variant in prepared.items():
        timing = timings[name]
        seconds = statistics.median(timing.wall)
        row = {
            "variant": name,
            "ms/step": 1e3 * seconds,
            "least ms": 1e3 * min(timing.wall),
            "most ms": 1e3 * max(timing.wall),
            "x": seconds / first,
            "first step s": variant.first,
            "from the cache s": variant.cached,
            "peak GiB": variant.peak and variant.peak / 2**30,
            "XLA's temporaries GiB": variant.planned and variant.planned / 2**30,
        }
        if flop:
            speed = flop / statistics.median(timing.cpu if cpu else timing.wall)
            row["TFLOP/step"] = flop / 1e12
            row |= {f"of {key}": speed / peak[cpu] for key, peak in peaks.items()}
        rows.append(row)
    return rows
