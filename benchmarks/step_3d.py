"""Times a step of EG3D against the same work in the published order.

    python -m benchmarks.step_3d
    python -m benchmarks.step_3d --size full --ways accumulating --turns 1
    python -m benchmarks.step_3d --size full --compile-only

The networks are EG3D (published size: planes of 256, images of 512 pixels; small:
planes of 64, images of 64; tiny: to try the script), LPIPS on VGG16 and IR-SE50, with
random weights. The losses are the published ones with N_a = N_g = 2. The ways are:

    ours          the production step: all latents in one pass
    accumulating  ours, one pair at a time (config.gradient_accumulation)
    separate      one latent at a time, separate passes for planes and image

All of them are JAX programs, so the ratio is that of the order of work alone. Before
timing, the first step's loss and gradient are compared.
"""

import argparse
import statistics
import sys

from benchmarks import measuring, our_step
from benchmarks.our_step import OurStep, Problem
from benchmarks.random_networks import config_f, random
from benchmarks.step import TOLERANCE
from guide_jax.config_types import Compute
from guide_jax.experiment.allocator import keep_freed_memory
from guide_jax.models.eg3d.generator import EG3D

SMALL = {
    "resolution": 64,
    "channels": config_f(64, 64),
    "sr_channels": (32, 16),
    "render_size": 16,
    "depth_samples": 12,
    "importance_samples": 12,
}
TINY = SMALL | {"resolution": 32, "channels": (16, 16, 8), "render_size": 8}
SIZES = {"tiny": TINY, "small": SMALL, "full": {}}


def problem_of(size: str) -> Problem:
    """Makes random networks and a person to forget; `size` is a key of `SIZES`."""
    # With the usual 0.01, random weights would map every z to the same code.
    generator = random(lambda rngs: EG3D(**SIZES[size], rngs=rngs))
    loss_networks = our_step.make_loss_networks(tiny=size == "tiny")
    return our_step.problem_of(generator, loss_networks)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument(
        "--ways", nargs="+", choices=our_step.VARIANTS, default=("ours", "separate")
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--compile-only", action="store_true", help="compile without running a step"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Compares and times the ways, and prints the table."""
    args = parse(argv)
    keep_freed_memory()
    problem, rows = (
        problem_of(args.size),
        [["way", "s/step", "x", "first s", "peak MB"]],
    )
    variants: dict[str, OurStep] = {}
    for name in args.ways:
        variant = OurStep(problem, name, Compute("float32", "highest"))
        planned = variant.planned()
        if planned is not None:
            print(f"XLA's temporaries for a step ({name}): {planned / 1e6:.0f} MB")
        variants[name] = variant
    if args.compile_only:
        return
    first = {x: measuring.seconds(lambda y=y: y(1)) for x, y in variants.items()}
    loss, gradient = variants[args.ways[0]].figures()
    print(f"first step: loss {loss:.6g}, gradient norm {gradient:.6g}")
    for name, variant in variants.items():
        others = variant.figures()
        away = {
            "loss": abs(others[0] / loss - 1),
            "gradient": abs(others[1] / gradient - 1),
        }
        print(f"  {name}: {', '.join(f'{k} off by {v:.1e}' for k, v in away.items())}")
        if any(v > TOLERANCE[k] for k, v in away.items()):
            sys.exit(f"{name}: not the same step, so it is not timed")
    peaks = {x: measuring.host_peak(y) for x, y in variants.items()}
    timings = measuring.by_turns(dict(variants), args.turns, 1)
    base = statistics.median(timings[args.ways[0]].wall)
    for name, timing in timings.items():
        ratio = statistics.median(timing.wall) / base
        peak = "-" if peaks[name] is None else f"{peaks[name] / 1e6:.0f}"
        spread = measuring.spread(timing.wall)
        rows.append([name, spread, f"{ratio:.2f}", f"{first[name]:.0f}", peak])
    measuring.show(rows)


if __name__ == "__main__":
    main()
