"""Breaks a step's time down by network and direction, using JAX's profiler.

    python -m benchmarks.breakdown
    python -m benchmarks.breakdown --resolution 1024 --compute bfloat16 --keep traces

Runs a few steps of the production program on random networks, as `benchmarks.step`
does, and sums the time of its operations: kernel time on a GPU, thread time on a CPU,
where two busy cores count two seconds per second. `--keep` keeps the trace for XProf or
Perfetto. On a GPU, set XLA_FLAGS=--xla_gpu_enable_command_buffer= because command
buffers hide which operation a kernel belongs to.
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
    """Returns the part of the step that an operation belongs to, from its JAX path."""
    if "losses" in op_name:
        return "loss terms"
    network = next((name for name in NETWORKS if f"/{name}/" in op_name), None)
    if network is None:
        return "latents, Adam, copies"
    if "source" in op_name:
        return f"source, {network}"
    direction = "backward" if "transpose(" in op_name else "forward"
    return f"student, {network}, {direction}"


def kind_of(op_name: str) -> str:
    """Returns 'convolutions' for convolutions and matrix products, else 'the rest'."""
    match = re.search(r"conv_general_dilated|dot_general", op_name)
    return "convolutions" if match else "the rest"


def times(trace: Path, names: dict[str, str]) -> dict[str, collections.Counter]:
    """Sums a trace's operation times: part -> kind -> seconds.

    Args:
        trace: the profiler's output folder.
        names: HLO operation name -> JAX path.
    """
    (file,) = trace.rglob("*.xplane.pb")
    totals: dict = collections.defaultdict(collections.Counter)
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    on_device = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in on_device or planes:
        for line in plane.lines:
            for event in line.events:
                if event.name.startswith("end: "):  # end markers in CPU traces
                    continue
                op = names.get(dict(event.stats).get("hlo_op", event.name))
                seconds = event.duration_ns / 1e9
                if op is not None:
                    totals[part_of(op)][kind_of(op)] += seconds
                elif on_device:  # on a CPU, unnamed events enclose the named ones
                    totals["unattributed"]["the rest"] += seconds
    return totals


def table(totals: dict[str, collections.Counter], steps: int) -> list[str]:
    """Returns the lines to print, largest part first."""
    total = sum(sum(kinds.values()) for kinds in totals.values())
    lines = [f"{'part':30} {'s/step':>8} {'share':>6} {'convolutions':>13}"]
    for part, kinds in sorted(totals.items(), key=lambda x: -sum(x[1].values())):
        whole = sum(kinds.values())
        lines.append(
            f"{part:30} {whole / steps:8.3f} {whole / total:6.0%}"
            f" {kinds['convolutions'] / whole:13.0%}"
        )
    return [*lines, f"{'total':30} {total / steps:8.3f}"]


def main(argv: list[str] | None = None) -> None:
    """Profiles the steps and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--compute", default="float32", help="config.compute")
    parser.add_argument("--precision", default="default", help="config.precision")
    parser.add_argument("--keep", type=Path, help="folder to keep the trace in")
    parser.add_argument(
        "--tiny", action="store_true", help="narrow networks, to try the script"
    )
    args = parser.parse_args(argv)
    keep_freed_memory()  # as main.py does
    problem = our_step.make_problem(args.resolution, args.tiny)
    step = our_step.OurStep(problem, "ours", Compute(args.compute, args.precision))
    step(1)
    names = dict(NAMED.findall(step.program()))
    with tempfile.TemporaryDirectory() as folder:
        folder = args.keep or Path(folder)
        with jax.profiler.trace(str(folder)):
            step(args.steps)
        totals = times(folder, names)
    device = jax.devices()[0].device_kind
    print(
        f"{device}, jax {jax.__version__}, {args.resolution} px, {args.compute},"
        f" precision {args.precision}"
    )
    print("\n".join(table(totals, args.steps)))


if __name__ == "__main__":
    main()
