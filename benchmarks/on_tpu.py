"""Compiles the unlearning step for TPUs that are not there, and tabulates the plans.

    pip install -e '.[tpu]'
    python -m benchmarks.on_tpu --tiny --sizes 32
    python -m benchmarks.on_tpu --sizes 64 256 --chips v5e --out tpu.jsonl
    python -m benchmarks.on_tpu --show --out tpu.jsonl

PyPI's libtpu compiles for a described topology. Nothing is run or allocated, so the
seconds a step takes are bounds from the chip's published peaks, not measurements: FLOP
and bytes of the compiler's cost analysis over the chip's speed in bfloat16 and its
memory's. (The analysis' own `optimal_seconds` were negative.) Four devices share a step
of N_a = N_g = 4 as in `sharding.py`; their FLOP and bytes are one device's.

"float32" stores activations in float32; the multiplications are then in bfloat16, which
is a TPU's default precision (`--precision highest` is full float32). Every case is
appended to a JSON-lines file, and a case that is in it is not compiled again. Each is
compiled in a process of its own, because the compiler may crash.

`--level=O1` compiles many times faster and plans more memory. `--program=pair` is what
gradient accumulation runs for each pair; the optimizer's state comes on top. The other
parts of the step show where compilation takes its time.
"""

import argparse
import collections
import multiprocessing
import os
import re
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies

from benchmarks import measuring, records, tpu_programs
from guide_jax.config_types import Compute

GIB = 2**30


class Chip(NamedTuple):
    """A TPU chip's topology for four devices, and its published figures.

    From https://cloud.google.com/tpu/docs/system-architecture-tpu-vm (the pages of v5e,
    v6e and v5p).

    Attributes:
        topology: libtpu's name of four chips on one host.
        hbm: bytes of memory.
        flops: bfloat16 FLOP per second.
        bandwidth: memory's bytes per second.
    """

    topology: str
    hbm: int
    flops: float
    bandwidth: float


CHIPS = {
    "v5e": Chip("v5e:2x2", 16 * GIB, 197e12, 819e9),
    "v6e": Chip("v6e:2x2", 32 * GIB, 918e12, 1640e9),
    "v5p": Chip("v5p:2x2x1", 95 * GIB, 459e12, 2765e9),
}
# The compiler splits an asynchronous collective into a start and a done.
COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)
TOO_LARGE = re.compile(
    r"(?:Used |temporaries \()([\d.]+)([KMG])(?: of|\) exceeds available HBM)"
)
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
CASE = ("program", "tiny", "size", "dtype", "precision", "level", "chip", "devices")


def devices(chip: str, count: int) -> list[jax.Device]:
    """Returns the first `count` devices of a chip's topology.

    Raises:
        RuntimeError: libtpu is not installed, or does not know the chip.
    """
    # Otherwise libtpu asks Google Cloud's metadata server which TPU this machine has.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    name = CHIPS[chip].topology
    topology = topologies.get_topology_desc(topology_name=name, platform="tpu")
    return list(topology.devices)[:count]


def compile_case(case: dict) -> dict:
    """Compiles a case.

    Args:
        case: a value for each name in `CASE`.

    Returns:
        What the compiler plans, or "error" with its first line.
    """
    compute = Compute(case["dtype"], case["precision"])
    targets = devices(case["chip"], case["devices"])
    started = time.monotonic()
    lowered = tpu_programs.lower(
        case["program"], case["size"], compute, targets, case["tiny"]
    )
    result = {"trace_s": time.monotonic() - started}
    started, cpu = time.monotonic(), time.process_time()
    if case["level"]:
        jax.config.update("jax_optimization_level", case["level"])
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = TOO_LARGE.search(str(error))
        if used:
            result["hbm"] = int(float(used[1]) * UNITS[used[2]])
        result["error"] = str(error).splitlines()[0][:200]
    else:
        result |= plan_of(compiled)
    result["compile_cpu_s"] = time.process_time() - cpu
    return result | {"compile_s": time.monotonic() - started}


def compile_apart(case: dict) -> dict:
    """Returns what `compile_case` does, from a process of its own."""
    started = time.monotonic()
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned) as pool:
        try:
            return pool.submit(compile_case, case).result()
        except BrokenProcessPool:
            seconds = time.monotonic() - started
    return {"error": "the compiler crashed", "compile_s": seconds}


def plan_of(compiled: jax.stages.Compiled) -> dict:
    """Returns a compiled program's memory, collectives, FLOP and bytes per device."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    # Donated arguments and the results that overwrite them are counted once.
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    held -= memory.alias_size_in_bytes
    found = COLLECTIVE.findall(compiled.as_text())
    return {
        "hbm": held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "collectives": dict(collections.Counter(found)),
        "flop": cost["flops"],
        "bytes": cost["bytes accessed"],
    }


def table(rows: list[dict]) -> list[list[str]]:
    """Returns the cells to print, a header and a row for each result."""
    header = ["size", "program", "dtype", "chip", "devices", "compiles", "HBM GiB"]
    header += ["of", "collectives", "TFLOP", "GB", "s by FLOP", "s by bytes"]
    cells = [[*header, "compile s", "CPU s"]]
    for row in rows:
        chip = CHIPS[row["chip"]]
        name = row["program"] + (" (tiny)" if row["tiny"] else "")
        line = [f"{row['size']} px", name, row["dtype"], row["chip"]]
        line += [str(row["devices"]), "no" if "error" in row else "yes"]
        line.append(f"{row['hbm'] / GIB:.2f}" if "hbm" in row else "-")
        line.append(f"{chip.hbm / GIB:.0f}")
        if "error" in row:
            line += ["-"] * 5
        else:
            found = row["collectives"].items()
            line.append(", ".join(f"{n} {name}" for name, n in found) or "none")
            line += [f"{row['flop'] / 1e12:.3g}", f"{row['bytes'] / 1e9:.3g}"]
            line.append(f"{row['flop'] / chip.flops:.2g}")
            line.append(f"{row['bytes'] / chip.bandwidth:.2g}")
        for name in ("compile_s", "compile_cpu_s"):
            line.append(f"{row[name]:.0f}" if name in row else "-")
        cells.append(line)
    return cells


def cases(args: argparse.Namespace) -> list[dict]:
    """Returns the cases that the command line chooses, the smallest first."""
    counts = args.devices if args.program == "step" else (1,)
    return [
        {
            "program": args.program,
            "tiny": args.tiny,
            "size": size,
            "dtype": dtype,
            "precision": args.precision,
            "level": args.level,
            "chip": chip,
            "devices": count,
        }
        for size in args.sizes
        for dtype in args.dtypes
        for chip in args.chips
        for count in counts
    ]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=(64, 256, 1024))
    dtypes = ("float32", "bfloat16")
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=dtypes)
    parser.add_argument("--chips", nargs="+", choices=CHIPS, default=tuple(CHIPS))
    parser.add_argument("--devices", type=int, nargs="+", default=(1, 4))
    programs = tpu_programs.PROGRAMS
    parser.add_argument("--program", choices=programs, default="step")
    parser.add_argument("--precision", default="default", help="config.precision")
    parser.add_argument(
        "--level",
        choices=("O1", "O2", "O3"),
        default="",
        help="the compiler's optimization level; by default its own choice",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/tpu.jsonl"))
    parser.add_argument("--show", action="store_true", help="only print the table")
    parser.add_argument(
        "--tiny", action="store_true", help="narrow networks, to try the script"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Compiles the cases that are not in the file yet, and prints the table."""
    args = parse(argv)
    done = records.read(args.out)
    if not args.show:
        versions = {name: metadata.version(name) for name in ("jax", "libtpu")}
        known = [[row.get(name) for name in CASE] for row in done]
        for case in cases(args):
            if [case[name] for name in CASE] in known:
                continue
            print("compiling", *case.values(), flush=True)
            row = case | compile_apart(case) | versions
            row["date"] = datetime.now(UTC).date().isoformat()
            records.append(args.out, row)
            done.append(row)
    measuring.show(table(done))


if __name__ == "__main__":
    main()
