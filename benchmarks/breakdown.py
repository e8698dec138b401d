"""Breaks a step's time down by network and direction, using JAX's profiler.

    python -m benchmarks.breakdown
    python -m benchmarks.breakdown --resolution 1024 --compute bfloat16 --keep traces

Runs a few steps of the production program on random networks, as `benchmarks.step`
does, and sums the time of its operations: kernel time on a GPU, thread time on a CPU,
where two busy cores count two seconds per second. Then lists the ten costliest kernels
and the share of the time in which none ran. `--keep` keeps the trace for XProf or
Perfetto. On a GPU, set XLA_FLAGS=--xla_gpu_enable_command_buffer= because command
buffers hide which operation a kernel belongs to.
"""

import argparse
import collections
import re
import tempfile
from pathlib import Path

import jax

from benchmarks import our_step, records, traces
from benchmarks.records import Record
from guide_jax.experiment.allocator import keep_freed_memory
from guide_jax.training.losses import Compute

NAMED = re.compile(r'%?(\S+) = .*?metadata=\{[^}]*?op_name="([^"]*)"')
KERNELS = 10  # how many are listed
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


def times(trace: traces.Trace, names: dict[str, str]) -> dict[str, collections.Counter]:
    """Sums a trace's operation times: part -> kind -> seconds.

    Args:
        trace: the operations.
        names: HLO operation name -> JAX path.
    """
    totals: dict = collections.defaultdict(collections.Counter)
    for each in trace.operations:
        op = names.get(each.hlo)
        if op is not None:
            totals[part_of(op)][kind_of(op)] += each.seconds
        elif trace.on_device:  # on a CPU, unnamed events enclose the named ones
            totals["unattributed"]["the rest"] += each.seconds
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


def kernels(trace: traces.Trace, names: dict[str, str], steps: int) -> list[Record]:
    """Returns records of the ten costliest kernels and of the device's idle share.

    On a CPU, operations of the program take the kernels' place.
    """
    operations = trace.operations
    if not trace.on_device:
        operations = [each for each in operations if each.hlo in names]
    total = sum(each.seconds for each in operations)
    parts = {each.name: names.get(each.hlo) for each in operations}
    idle = traces.idle_share(operations)
    rows: list[Record] = [{"kernel": "(idle)", "share": idle}]
    for name, seconds, times in traces.costliest(operations, KERNELS):
        op = parts[name]
        row = {"kernel": name[:80], "ms/step": 1e3 * seconds / steps}
        row |= {"times/step": times / steps, "share": seconds / total}
        rows.append(row | {"part of": part_of(op) if op else None})
    return rows


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--compute", default="float32", help="config.compute")
    parser.add_argument("--precision", default="default", help="config.precision")
    parser.add_argument("--keep", type=Path, help="folder to keep the trace in")
    parser.add_argument("--json", type=Path, help="file to append the results to")
    parser.add_argument(
        "--tiny", action="store_true", help="narrow networks, to try the script"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Profiles the steps and prints the tables."""
    args = parse(argv)
    keep_freed_memory()  # as main.py does
    problem = our_step.make_problem(args.resolution, args.tiny)
    step = our_step.OurStep(problem, "ours", Compute(args.compute, args.precision))
    step(1)
    names = dict(NAMED.findall(step.program()))
    with tempfile.TemporaryDirectory() as folder:
        folder = args.keep or Path(folder)
        with jax.profiler.trace(str(folder)):
            step(args.steps)
        trace = traces.read(folder)
    totals = times(trace, names)
    device = jax.devices()[0].device_kind
    print(
        f"{device}, jax {jax.__version__}, {args.resolution} px, {args.compute},"
        f" precision {args.precision}"
    )
    print("\n".join(table(totals, args.steps)))
    setting = {"device": device, "jax": jax.__version__, "px": args.resolution}
    setting |= {"compute": args.compute, "precision": args.precision}
    setting["tiny"] = args.tiny
    for part, kinds in totals.items():
        whole = sum(kinds.values())
        row = {"part": part, "ms/step": 1e3 * whole / args.steps}
        row["convolutions"] = kinds["convolutions"] / whole
        records.append(args.json, {"benchmark": "breakdown"} | setting | row)
    for row in kernels(trace, names, args.steps):
        if "ms/step" in row:
            print(f"{row['ms/step']:9.3f} ms {row['share']:5.1%} {row['kernel']}")
        else:
            print(f"idle between the first and the last operation: {row['share']:.1%}")
        records.append(args.json, {"benchmark": "kernels"} | setting | row)


if __name__ == "__main__":
    main()
