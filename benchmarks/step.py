"""Times our unlearning step and the same work in PyTorch, alternately.

    pip install torch
    python -m benchmarks.step
    python -m benchmarks.step --resolution 1024 --ways ours accumulating published
    python -m benchmarks.step --device cpu --threads 1
    python -m benchmarks.step --generator eg3d --ways ours separate
    python -m benchmarks.step --generator eg3d --resolution 512 --ways accumulating

The networks are StyleGAN2 (config-f), LPIPS on VGG16 and IR-SE50, with the same random
weights on both sides. EG3D has the published size at 512 pixels and is smaller below;
PyTorch's variants and the count of FLOP are of StyleGAN2 alone. The losses are the
published ones with N_a = N_g = 2. Before timing, the first step's loss and gradient are
compared. The variants are:

    ours          the production step: all latents in one pass
    accumulating  ours, one pair at a time (config.gradient_accumulation)
    separate      ours, one latent at a time, separate passes for features and image
    published     PyTorch, one latent at a time, separate passes for features and image
    shared        PyTorch, one latent at a time, features and image from one pass
    batched       PyTorch, all latents in one pass

Columns: "x" is a variant's time divided by the first variant's, in wall time and in
CPU-seconds. "first s" is the first step, which compiles; "cached s" is the first step
of a new instance, whose program comes from JAX's cache on disk. "peak MB" is the memory
that a step needs beyond weights and Adam's moments. "of float32" and so on is the share
of the fastest large matrix product measured here; on a CPU it is per CPU-second because
the machine may be busy with other work.

Our variants also draw the latents; PyTorch's receive them. PyTorch runs at its default
settings, which on a GPU means TF32 in convolutions. Without PyTorch, only ours is
timed. `--threads` limits the whole process to that many cores; OMP_WAIT_POLICY is set
to PASSIVE because busy-waiting PyTorch threads would count as CPU time. If flaxmodels
is installed, its synthesis is timed next to ours.
"""

import argparse
import dataclasses
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import jax

from benchmarks import against_flaxmodels, arithmetic, measuring, our_step, records
from benchmarks.our_step import OurStep, Problem
from benchmarks.step_results import Prepared, platform, table
from benchmarks.step_results import records as variant_records
from guide_jax.experiment.allocator import keep_freed_memory
from guide_jax.training.losses import Compute

TORCH = ("published", "shared", "batched")
# Generator -> the variants timed by default.
GENERATORS = {
    "stylegan2": ("ours", "published", "shared"),
    "eg3d": ("ours", "separate"),
}
# Relative tolerances. A ReLU that flips in float32 changes the gradient more than the
# loss.
TOLERANCE = {"loss": 1e-3, "gradient": 1e-2}


def prepare_ours(problem: Problem, name: str, compute: Compute) -> Prepared:
    """Compiles a variant of our step twice, the second time from the cache."""
    variant, gpu = OurStep(problem, name, compute), platform() == "gpu"
    peak, first = None, []

    def run(steps: int) -> None:
        first.append(measuring.seconds(lambda: variant(steps)))

    if gpu:
        peak = measuring.jax_gpu_peak(run)
    else:
        run(1)
    figures = variant.figures()
    variant.restart()
    cached = measuring.seconds(lambda: variant(1))
    if not gpu:
        peak = measuring.host_peak(variant)
    return Prepared(variant, *figures, first[0], cached, peak, variant.planned())


def compile_only(problem: Problem, name: str, compute: Compute) -> None:
    """Prints a variant's compilation time, with an empty cache and from the cache."""
    variant = OurStep(problem, name, compute)
    with measuring.empty_cache():
        for name in ("with an empty cache", "from the cache"):
            variant.restart()
            spent = measuring.seconds(variant.planned)
            print(f"tracing and compiling {name}: {spent:.1f} s", flush=True)
        print(
            f"XLA's temporaries for a step ({name}): {variant.planned() / 1e6:.0f} MB"
        )


def prepare_torch(problem: Problem, name: str, torch_step: Any) -> Prepared:
    """Copies the problem to PyTorch and runs the first step."""
    device = "cuda" if platform() == "gpu" else "cpu"
    variant = torch_step.TorchStep(
        name,
        problem.generator.synthesis,
        problem.loss_networks,
        problem.latents(),
        problem.pairs,
        problem.training.weights,
        problem.training.learning_rate,
        device,
    )
    figures = variant.figures()
    variant(1)  # on a GPU, the first step selects algorithms
    return Prepared(variant, *figures, None, None, variant.peak())


def import_torch() -> Any:
    """Returns the PyTorch step's module, or prints why it is unusable; then None."""
    try:
        module = importlib.import_module("benchmarks.torch_step")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print("PyTorch is not installed (pip install torch); timing ours alone")
        return None
    if platform() == "gpu" and not module.has_gpu():
        print("this PyTorch cannot use the GPU; timing ours alone")
        return None
    return module


def exact(compute: Compute) -> Compute:
    """Returns the settings in full float32."""
    return dataclasses.replace(compute, dtype="float32", precision="highest")


def compare(prepared: dict[str, Prepared], compute: Compute, problem: Problem) -> None:
    """Prints how far each variant's step 0 differs from ours in float32.

    Raises:
        SystemExit: a float32 variant's loss or gradient norm differs by more than
            `TOLERANCE`.
    """
    full = compute == exact(compute)
    full |= platform() == "cpu" and compute.dtype == "float32"
    if full and "ours" in prepared:
        reference = prepared["ours"]
    else:
        variant = OurStep(problem, "ours", exact(compute))
        variant(1)
        reference = Prepared(variant, *variant.figures(), None, None, None)
    print(
        f"first step: loss {reference.loss:.6g}, gradient norm {reference.gradient:.6g}"
    )
    faults = []
    for name, variant in prepared.items():
        if variant is reference:
            continue
        loss = abs(variant.loss / reference.loss - 1)
        gradient = abs(variant.gradient / reference.gradient - 1)
        print(f"  {name}: loss off by {loss:.1e}, gradient norm off by {gradient:.1e}")
        same = loss <= TOLERANCE["loss"] and gradient <= TOLERANCE["gradient"]
        if not same and (name in TORCH or full):
            faults.append(name)
    if faults:
        sys.exit(f"loss or gradient differs from ours, not timed: {', '.join(faults)}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", choices=GENERATORS, default="stylegan2")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: JAX's")
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=(*our_step.VARIANTS, *TORCH),
        help="variants to time; default: ours published shared, EG3D: ours separate",
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, help="per turn; default: 1, on a GPU 10")
    parser.add_argument("--threads", type=int, help="cores for the whole process")
    parser.add_argument(
        "--freed-memory",
        choices=("kept", "returned"),
        default="kept",
        help="kept: as main.py does on a CPU; returned: glibc's default; for all",
    )
    parser.add_argument(
        "--precision",
        default="default",
        help="config.precision of our step; on a CPU always 'highest'",
    )
    parser.add_argument(
        "--compile-only", action="store_true", help="compile without running a step"
    )
    parser.add_argument(
        "--compute", default="float32", help="config.compute of our step"
    )
    parser.add_argument(
        "--lpips-resolution", type=int, default=0, help="loss.lpips_resolution of ours"
    )
    parser.add_argument(
        "--no-comparison",
        action="store_true",
        help="do not compare the first step, which compiles another program",
    )
    parser.add_argument("--json", type=Path, help="file to append the results to")
    parser.add_argument(
        "--tiny", action="store_true", help="narrow networks, to try the script"
    )
    args = parser.parse_args(argv)
    args.ways = args.ways or GENERATORS[args.generator]
    if args.generator == "eg3d" and set(args.ways) & set(TORCH):
        parser.error("PyTorch's variants are of StyleGAN2 alone; see --ways")
    if args.lpips_resolution and set(args.ways) & set(TORCH):
        parser.error("PyTorch's variants have no --lpips-resolution; see --ways")
    return args


def prepare_process(args: argparse.Namespace) -> None:
    """Makes the settings that must precede the start of JAX and PyTorch."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Otherwise JAX takes most of the GPU's memory and leaves little for PyTorch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if args.device:
        jax.config.update("jax_platforms", args.device)
    if args.freed_memory == "kept" and not keep_freed_memory():
        args.freed_memory = "returned"  # on a GPU, or with malloc settings of the user
    if args.threads:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[: args.threads])


def main(argv: list[str] | None = None) -> None:
    """Prepares, compares and times the variants, and prints the table."""
    args = parse(argv)
    prepare_process(args)
    steps = args.steps or (10 if platform() == "gpu" else 1)
    torch_step = import_torch() if set(args.ways) & set(TORCH) else None
    print(machine(torch_step, args))
    problem = our_step.make_problem(args.resolution, args.tiny, args.generator)
    compute = Compute(args.compute, args.precision, args.lpips_resolution)
    if args.compile_only:
        for name in args.ways:
            if name in our_step.VARIANTS:
                compile_only(problem, name, compute)
        return
    prepared = {}
    with measuring.empty_cache():
        # "accumulating" comes first because JAX's memory peak cannot be reset.
        for name in sorted(set(args.ways) & set(our_step.VARIANTS)):
            prepared[name] = prepare_ours(problem, name, compute)
    for name in args.ways:
        if name in TORCH and torch_step:
            prepared[name] = prepare_torch(problem, name, torch_step)
    prepared = {name: prepared[name] for name in args.ways if name in prepared}
    if not args.no_comparison:
        compare(prepared, compute, problem)
    runs = {name: variant.run for name, variant in prepared.items()}
    timings = measuring.by_turns(runs, args.turns, steps)
    flop, speeds = problem.flop(args.lpips_resolution), {}
    if flop:
        speeds = arithmetic.peaks(torch_step, args.tiny)
        print(f"useful arithmetic: {flop / 1e9:.1f} GFLOP per step; measured peaks:")
        for name, (wall, cpu) in speeds.items():
            print(f"  {name} {wall / 1e9:.0f} GFLOP/s, {cpu / 1e9:.0f} per CPU-second")
    measuring.show(table(prepared, timings, flop, speeds))
    for row in variant_records(prepared, timings, flop, speeds):
        records.append(args.json, settings(torch_step, args) | row)
    for name, variant in prepared.items():
        if variant.planned is not None:
            size = variant.planned / 1e6
            print(f"XLA's temporaries for a step ({name}): {size:.0f} MB")
    if args.generator == "stylegan2":
        for line in against_flaxmodels.lines(problem.generator, args.turns):
            print(line)


def settings(torch_step: Any, args: argparse.Namespace) -> records.Record:
    """Returns what a record says about the machine, the versions and the settings."""
    return {
        "benchmark": "step",
        "generator": args.generator,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "torch": torch_step and torch_step.torch.__version__,
        "px": args.resolution,
        "compute": args.compute,
        "precision": args.precision,
        "LPIPS px": args.lpips_resolution or args.resolution,
        "tiny": args.tiny,
    }


def machine(torch_step: Any, args: argparse.Namespace) -> str:
    """Returns a line that names the machine, the versions and the settings."""
    kind = jax.devices()[0].device_kind
    if platform() == "cpu":
        kind += f", {len(os.sched_getaffinity(0))} cores"
    versions = f"jax {jax.__version__}"
    if torch_step:
        versions += f", torch {torch_step.torch.__version__}"
    computed = f"{args.compute}, precision {args.precision}"
    memory = f"freed memory {args.freed_memory}"
    network = f"{args.generator}, {args.resolution} px"
    return f"{kind}, {versions}, {network}, {computed}, {memory}"


if __name__ == "__main__":
    main()
