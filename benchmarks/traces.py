"""Reads a profiler trace's own files: operations, costliest kernels, idle time.

Operations are kernels on a GPU, and XLA's thunks on a CPU, where several may run at a
time.
"""

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax


class Operation(NamedTuple):
    """One execution of an operation.

    Attributes:
        name: the kernel's name, or the HLO operation's on a CPU.
        hlo: the HLO operation that it belongs to, or the name if that is unknown.
        start: start in seconds.
        seconds: duration.
    """

    name: str
    hlo: str
    start: float
    seconds: float


class Trace(NamedTuple):
    """The operations of a trace, and whether they ran on an accelerator."""

    operations: list[Operation]
    on_device: bool


def read(folder: Path) -> Trace:
    """Reads the trace that `jax.profiler.trace` wrote to a folder."""
    (file,) = folder.rglob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    on_device = [plane for plane in planes if plane.name.startswith("/device:")]
    return Trace(list(_operations(on_device or planes)), bool(on_device))


def _operations(planes) -> Iterator[Operation]:
    for plane in planes:
        lines = list(plane.lines)
        # A GPU's kernels are on its streams; further lines, where there are any, show
        # the same time again by module or operation.
        streams = [line for line in lines if line.name.startswith("Stream")]
        for line in streams or lines:
            for event in line.events:
                if event.name.startswith("end: "):  # end markers in CPU traces
                    continue
                hlo = str(dict(event.stats).get("hlo_op", event.name))
                start, seconds = event.start_ns / 1e9, event.duration_ns / 1e9
                yield Operation(event.name, hlo, start, seconds)


def idle_share(operations: list[Operation]) -> float:
    """Returns the share of the time, from first to last operation, in which none ran.

    Raises:
        ValueError: there are no operations.
    """
    if not operations:
        raise ValueError("the trace has no operations")
    spans = sorted((each.start, each.start + each.seconds) for each in operations)
    begin, end = spans[0][0], max(end for _, end in spans)
    busy, until = 0.0, begin
    for start, stop in spans:
        busy += max(0.0, stop - max(start, until))
        until = max(until, stop)
    return 1 - busy / (end - begin)


def costliest(operations: list[Operation], count: int) -> list[tuple[str, float, int]]:
    """Returns the names with the longest total time: name, seconds, executions."""
    seconds: collections.Counter = collections.Counter()
    times: collections.Counter = collections.Counter()
    for each in operations:
        seconds[each.name] += each.seconds
        times[each.name] += 1
    return [(name, total, times[name]) for name, total in seconds.most_common(count)]
