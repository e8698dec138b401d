"""Where the time of a step goes, by network and direction, from JAX's profiler.

    python -m benchmarks.breakdown
    python -m benchmarks.breakdown --resolution 1024 --compute bfloat16 --keep traces

Takes a few steps of the production program on random networks (as `benchmarks.step`
does) and adds up the time of its operations: on a GPU that of kernels, on a CPU that of
threads, so that two cores make two seconds a second. `--keep` leaves the trace for
XProf or Perfetto. On a GPU set XLA_FLAGS=--xla_gpu_enable_command_buffer= : command
buffers would hide what a kernel belongs to.
"""

import argparse
import collections
import re
import tempfile
from pathlib import Path

import jax

from benchmarks import our_step
from guide_jax.experiment.allocator import keep_freed_memory
from guide_jax.training.losses import Compute

NAMED = re.compile(r'%?(\S+) = .*?metadata=\{[^}]*?op_name="([^"]*)"')
NETWORKS = "synthesis", "lpips", "identity"


def part_of(op_name: str) -> str:
    """Returns what an operation belongs to, from the path that JAX gave it."""
    if "losses" in op_name:
        return "differences"
    network = next((name for name in NETWORKS if f"/{name}/" in op_name), None)
    if network is None:
        return "latents, Adam, copies"
    if "source" in op_name:
        return f"source, {network}"
    way = "backward" if "transpose(" in op_name else "forward"
    return f"student, {network}, {way}"


def kind_of(op_name: str) -> str:
    """Returns 'convolutions' for an operation that is mostly one, else 'the rest'."""
    found = re.search(r"conv_general_dilated|dot_general", op_name)
    return "convolutions" if found else "the rest"


def times(trace: Path, names: dict[str, str]) -> dict[str, collections.Counter]:
    """Adds up a trace's times: part -> kind -> seconds.

    Args:
        trace: the profiler's folder.
        names: operation in the program -> path that JAX gave it.
    """
    (file,) = trace.rglob("*.xplane.pb")
    found: dict = collections.defaultdict(collections.Counter)
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    on_device = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in on_device or planes:
        for line in plane.lines:
            for event in line.events:
                if event.name.startswith("end: "):  # the CPU's marks
                    continue
                op = names.get(dict(event.stats).get("hlo_op", event.name))
                seconds = event.duration_ns / 1e9
                if op is not None:
                    found[part_of(op)][kind_of(op)] += seconds
                elif on_device:  # a CPU's other events hold these
                    found["of no known operation"]["the rest"] += seconds
    return found


def table(found: dict[str, collections.Counter], steps: int) -> list[str]:
    """Returns the lines to print, the largest part first."""
    total = sum(sum(kinds.values()) for kinds in found.values())
    lines = [f"{'part':30} {'s/step':>8} {'share':>6} {'convolutions':>13}"]
    for part, kinds in sorted(found.items(), key=lambda x: -sum(x[1].values())):
        whole = sum(kinds.values())
        lines.append(
            f"{part:30} {whole / steps:8.3f} {whole / total:6.0%}"
            f" {kinds['convolutions'] / whole:13.0%}"
        )
    return [*lines, f"{'all':30} {total / steps:8.3f}"]


def main(argv: list[str] | None = None) -> None:
    """Takes the steps and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--compute", default="float32", help="config.compute")
    parser.add_argument("--precision", default="default", help="config.precision")
    parser.add_argument("--keep", type=Path, help="folder for the trace")
    parser.add_argument("--tiny", action="store_true", help="narrow, to try the script")
    args = parser.parse_args(argv)
    keep_freed_memory()  # as main.py
    problem = our_step.make_problem(args.resolution, args.tiny)
    way = our_step.OurWay(problem, "ours", Compute(args.compute, args.precision))
    way(1)
    names = dict(NAMED.findall(way.program()))
    with tempfile.TemporaryDirectory() as folder:
        folder = args.keep or Path(folder)
        with jax.profiler.trace(str(folder)):
            way(args.steps)
        found = times(folder, names)
    device = jax.devices()[0].device_kind
    print(
        f"{device}, jax {jax.__version__}, {args.resolution} px, {args.compute},"
        f" precision {args.precision}"
    )
    print("\n".join(table(found, args.steps)))


if __name__ == "__main__":
    main()
