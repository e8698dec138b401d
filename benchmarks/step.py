"""The unlearning step: ours against the same work in PyTorch, by turns.

    pip install torch
    python -m benchmarks.step
    python -m benchmarks.step --resolution 1024 --ways ours frugal published shared
    python -m benchmarks.step --device cpu --threads 1

The networks are StyleGAN2 (config-f), LPIPS on VGG16 and IR-SE50, the losses the
published ones with N_a = N_g = 2, the weights random and the same on both sides; before
anything is timed, loss and gradient of the first step are compared. The ways:

    ours       the production step: all latents in one pass
    frugal     ours, one pair at a time (config.frugal)
    published  PyTorch, one latent at a time, separate passes for features and image
    shared     PyTorch, one latent at a time, features and image of one pass
    batched    PyTorch, all latents in one pass

"x" is a way's time over that of the first, on the clock and in CPU-seconds. Ours also
draws the latents, the others are given them. A first step compiles; "cached"
is that of a step made anew that finds its program in JAX's cache on disk. Peak memory
is what a step needs beyond what is there before it (weights, Adam's moments). PyTorch
has the settings it comes with: on a GPU, TF32 in convolutions. The share of the peak is
of the fastest large matrix product measured here: on a CPU per CPU-second, for others
may be using the machine.

Without PyTorch, ours is timed alone. `--threads` holds the whole process to so many
cores; OMP_WAIT_POLICY is PASSIVE, or PyTorch's waiting threads would count as work.
Where flaxmodels is installed, its synthesis is timed beside ours.
"""

import argparse
import importlib
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from benchmarks import against_flaxmodels, arithmetic, measuring, our_step
from benchmarks.our_step import OurWay, Problem
from guide_jax.experiment.allocator import keep_freed_memory
from guide_jax.training.losses import Compute

TORCH = ("published", "shared", "batched")
# Relative; a ReLU that flips in float32 changes the gradient more than the loss.
EXACT = Compute("float32", "highest")
MOST_OFF = {"loss": 1e-3, "gradient": 1e-2}
MATRIX = {"cpu": (2048, 1), "gpu": (8192, 10)}  # size, products in a row


class Prepared(NamedTuple):
    """A way that is compiled, and what was seen on the way there."""

    run: Callable[[int], None]
    loss: float
    gradient: float
    first: float | None
    cached: float | None
    peak: int | None
    planned: int | None = None


def prepare_ours(problem: Problem, name: str, compute: Compute) -> Prepared:
    """Compiles one of our steps twice, the second time from the cache."""
    way, gpu = OurWay(problem, name, compute), platform() == "gpu"
    peak, first = None, []

    def run(steps: int) -> None:
        first.append(measuring.seconds(lambda: way(steps)))

    if gpu:
        peak = measuring.jax_gpu_peak(run)
    else:
        run(1)
    figures = way.figures()
    way.restart()
    cached = measuring.seconds(lambda: way(1))
    if not gpu:
        peak = measuring.host_peak(way)
    return Prepared(way, *figures, first[0], cached, peak, way.planned())


def compile_only(problem: Problem, compute: Compute) -> None:
    """Prints how long our step compiles, without a cache and from it."""
    way = OurWay(problem, "ours", compute)
    with measuring.empty_cache():
        for name in ("without a cache", "from the cache"):
            way.restart()
            spent = measuring.seconds(way.planned)
            print(f"traced and compiled {name}: {spent:.1f} s", flush=True)
        print(f"XLA sets aside for a step: {way.planned() / 1e6:.0f} MB")


def prepare_torch(problem: Problem, name: str, torch_step: Any) -> Prepared:
    """Copies the problem to PyTorch and takes the first step."""
    device = "cuda" if platform() == "gpu" else "cpu"
    way = torch_step.TorchStep(
        name,
        problem.generator.synthesis,
        problem.judges,
        problem.latents(),
        problem.pairs,
        problem.weights,
        our_step.LEARNING_RATE,
        device,
    )
    figures = way.figures()
    way(1)  # on a GPU the first one chooses algorithms
    return Prepared(way, *figures, None, None, way.peak())


def platform() -> str:
    """Returns 'cpu' or 'gpu'."""
    return jax.default_backend()


def import_torch() -> Any:
    """Returns the module of the PyTorch step, or None after a line that says why."""
    try:
        module = importlib.import_module("benchmarks.torch_step")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print("PyTorch is needed for the comparison (pip install torch): ours alone")
        return None
    if platform() == "gpu" and not module.has_gpu():
        print("this PyTorch doesn't see the GPU: ours alone")
        return None
    return module


def compare(prepared: dict[str, Prepared], compute: Compute, problem: Problem) -> None:
    """Prints how far the first step's loss and gradient are from ours in float32.

    Raises:
        SystemExit: a way in float32 has others.
    """
    exact = compute == EXACT or (platform() == "cpu" and compute.dtype == "float32")
    if exact and "ours" in prepared:
        reference = prepared["ours"]
    else:
        way = OurWay(problem, "ours", EXACT)
        way(1)
        reference = Prepared(way, *way.figures(), None, None, None)
    print(f"first step: loss {reference.loss:.6g}, gradient {reference.gradient:.6g}")
    faults = []
    for name, way in prepared.items():
        if way is reference:
            continue
        loss = abs(way.loss / reference.loss - 1)
        gradient = abs(way.gradient / reference.gradient - 1)
        print(f"  {name}: loss {loss:.1e} off, gradient's length {gradient:.1e} off")
        same = loss <= MOST_OFF["loss"] and gradient <= MOST_OFF["gradient"]
        if not same and (name in TORCH or exact):
            faults.append(name)
    if faults:
        sys.exit(f"not the same work, so not compared: {', '.join(faults)}")


def peaks(torch_step: Any, tiny: bool) -> dict[str, tuple[float, float]]:
    """Measures large matrix products: precision -> FLOP per second and CPU-second."""
    size, times = (256, 1) if tiny else MATRIX[platform()]
    kinds = {"float32": ("float32", "highest")}
    if platform() == "gpu":
        kinds |= {"tf32": ("float32", "tensorfloat32"), "bf16": ("bfloat16", "default")}
    found = {}
    for name, (dtype, precision) in kinds.items():
        product = arithmetic.jax_product(size, dtype, precision)
        found[name] = arithmetic.speed(size, product, times)
    if torch_step and platform() == "cpu":
        theirs = arithmetic.speed(size, torch_step.product(size), times)
        found["float32"] = tuple(map(max, found["float32"], theirs))
    return found


HEADER = "way", "s/step", "CPU s/step", "x", "x CPU", "first s", "cached s", "peak MB"


def table(
    prepared: dict[str, Prepared],
    timings: dict[str, measuring.Timing],
    flop: int,
    peaks: dict[str, tuple[float, float]],
) -> list[list[str]]:
    """Returns the rows to print; the ratios are of a way's time to the first one's."""
    cpu = platform() == "cpu"
    per = "CPU s" if cpu else "s"
    rows = [[*HEADER, f"GFLOP/{per}", *(f"of {name}" for name in peaks)]]
    first = timings[next(iter(prepared))]
    for name, way in prepared.items():
        found = timings[name]
        ratios = (
            statistics.median(mine) / statistics.median(base)
            for mine, base in ((found.wall, first.wall), (found.cpu, first.cpu))
        )
        speed = flop / statistics.median(found.cpu if cpu else found.wall)
        seconds = (way.first, way.cached)
        rows.append(
            [
                name,
                measuring.spread(found.wall),
                measuring.spread(found.cpu),
                *(f"{ratio:.2f}" for ratio in ratios),
                *("-" if value is None else f"{value:.1f}" for value in seconds),
                "-" if way.peak is None else f"{way.peak / 1e6:.0f}",
                f"{speed / 1e9:.1f}",
                *(f"{speed / peak[cpu]:.0%}" for peak in peaks.values()),
            ]
        )
    return rows


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: JAX's")
    ways = (*our_step.WAYS, *TORCH)
    default = ("ours", "published", "shared")
    parser.add_argument("--ways", nargs="+", choices=ways, default=default)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of a turn; default: 1, on a GPU 10")
    parser.add_argument("--threads", type=int, help="cores for the whole process")
    parser.add_argument(
        "--freed-memory",
        choices=("kept", "returned"),
        default="kept",
        help="kept: as main.py has it on a CPU, for PyTorch too; returned: glibc's way",
    )
    parser.add_argument(
        "--precision",
        default="default",
        help="config.precision: of our products; on a CPU all are 'highest'",
    )
    parser.add_argument(
        "--compile-only", action="store_true", help="takes no step, needs no memory"
    )
    parser.add_argument("--compute", default="float32", help="config.compute: of ours")
    parser.add_argument("--tiny", action="store_true", help="narrow, to try the script")
    return parser.parse_args(argv)


def prepare_process(args: argparse.Namespace) -> None:
    """Sets what has to be set before JAX and PyTorch begin."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Or JAX would take most of the GPU's memory, and leave PyTorch little.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if args.device:
        jax.config.update("jax_platforms", args.device)
    if args.freed_memory == "kept" and not keep_freed_memory():
        args.freed_memory = "returned"  # on a GPU, or by the user's own settings
    if args.threads:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[: args.threads])


def main(argv: list[str] | None = None) -> None:
    """Prepares the ways, compares them, takes their time and prints the table."""
    args = parse(argv)
    prepare_process(args)
    steps = args.steps or (10 if platform() == "gpu" else 1)
    torch_step = import_torch() if set(args.ways) & set(TORCH) else None
    print(machine(torch_step, args))
    problem = our_step.make_problem(args.resolution, args.tiny)
    compute = Compute(args.compute, args.precision)
    if args.compile_only:
        compile_only(problem, compute)
        return
    prepared = {}
    with measuring.empty_cache():
        # The frugal one first: JAX's peak of memory only rises.
        for name in sorted(set(args.ways) & set(our_step.WAYS)):
            prepared[name] = prepare_ours(problem, name, compute)
    for name in args.ways:
        if name in TORCH and torch_step:
            prepared[name] = prepare_torch(problem, name, torch_step)
    prepared = {name: prepared[name] for name in args.ways if name in prepared}
    compare(prepared, compute, problem)
    ways = {name: way.run for name, way in prepared.items()}
    timings = measuring.by_turns(ways, args.turns, steps)
    found = peaks(torch_step, args.tiny)
    flop = problem.flop()
    print(f"useful arithmetic: {flop / 1e9:.1f} GFLOP a step; measured peaks:")
    for name, (wall, cpu) in found.items():
        print(f"  {name} {wall / 1e9:.0f} GFLOP/s, {cpu / 1e9:.0f} per CPU-second")
    measuring.show(table(prepared, timings, flop, found))
    for name, way in prepared.items():
        if way.planned is not None:
            print(f"XLA sets aside for a step ({name}): {way.planned / 1e6:.0f} MB")
    for line in against_flaxmodels.lines(problem.generator, args.turns):
        print(line)


def machine(torch_step: Any, args: argparse.Namespace) -> str:
    """Returns a line on what ran where."""
    kind = jax.devices()[0].device_kind
    if platform() == "cpu":
        kind += f", {len(os.sched_getaffinity(0))} cores"
    versions = f"jax {jax.__version__}"
    if torch_step:
        versions += f", torch {torch_step.torch.__version__}"
    computed = f"{args.compute}, precision {args.precision}"
    memory = f"freed memory {args.freed_memory}"
    return f"{kind}, {versions}, {args.resolution} px, {computed}, {memory}"


if __name__ == "__main__":
    main()
