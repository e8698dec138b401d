"""Compares forgetting people side by side, one per device, with one after another.

    python -m benchmarks.people
    python -m benchmarks.people --people 16 --config configs/ffhq.py --platform cuda

Times whole runs of main.py: reading weights, training, evaluation and images. A short
run of each kind comes first, so that all programs are compiled. On the CPU, JAX is told
to simulate `--devices` devices; the ideal is the time that one core needs for all
people, divided by the number of cores. On GPUs, the ideal is the sequential time
divided by the number of devices.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

MAIN = Path(__file__).parents[1] / "main.py"
SHORT = 2  # steps of the runs that only compile


def run(
    args: argparse.Namespace, folder: Path, over: str, people: int, cores: int
) -> float:
    """Times a run of main.py.

    Args:
        args: the command line.
        folder: for the runs' folders and the shared cache.
        over: `config.parallel.over`: "people" uses all devices, "latents" one.
        people: number of people to forget.
        cores: number of CPU cores to use; 0: all.

    Returns:
        The run's wall time in seconds.
    """
    devices = args.devices if over == "people" else 1
    environment = os.environ | {"JAX_PLATFORMS": args.platform}
    if args.platform == "cpu":
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment["XLA_FLAGS"] = flags

    def pin() -> None:
        if cores:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])

    def once(steps: int) -> float:
        workdir = tempfile.mkdtemp(dir=folder)
        command = [
            *(sys.executable, MAIN, f"--config={args.config}", f"--workdir={workdir}"),
            f"--config.steps={steps}",
            f"--config.source.count={people}",
            f"--config.parallel.over={over}",
            f"--config.parallel.devices={devices}",
            f"--config.cache={folder / 'cache'}",
        ]
        started = time.monotonic()
        done = subprocess.run(
            command, env=environment, preexec_fn=pin, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stderr)
        return time.monotonic() - started

    once(SHORT)
    return once(args.steps)


def main() -> None:
    """Runs the comparison and prints the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(MAIN.parent / "configs" / "demo.py"))
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(
        f"{args.platform}, {cores} cores, jax {jax.__version__}: {args.people} people"
        f" of {args.steps} steps, {args.devices} devices"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        side = run(args, folder, "people", args.people, 0)
        print(f"side by side: {side:.1f} s", flush=True)
        serial = run(args, folder, "latents", args.people, 0)
        print(f"one after another: {serial:.1f} s ({serial / side:.2f} times as long)")
        ideal = serial / args.devices
        if args.platform == "cpu":
            one = run(args, folder, "latents", 1, 1)
            two = run(args, folder, "latents", 2, 1)
            # The first person's time includes the work that is done once per run.
            ideal = (one + (two - one) * (args.people - 1)) / cores
            print(
                f"one core: {one:.1f} s for the first person, {two - one:.1f} s for"
                " each further person"
            )
        print(f"ideal: {ideal:.1f} s; side by side / ideal: {side / ideal:.2f}")


if __name__ == "__main__":
    main()
