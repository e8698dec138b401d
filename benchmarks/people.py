"""People side by side, one on each device, against one after another.

    python -m benchmarks.people
    python -m benchmarks.people --people 16 --config configs/ffhq.py --platform cuda

Runs main.py with its programs compiled beforehand (a short run of each kind comes
first) and takes the time of the whole run: reading weights, training, measures,
pictures. On the CPU, JAX takes it for `--devices` devices, and the ideal is what one
core needs for a person, times the people, over the cores. On GPUs the ideal is the time
of one after another over the devices.
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
SHORT = 2  # steps of the runs that compile


def run(
    args: argparse.Namespace, folder: Path, over: str, people: int, cores: int
) -> float:
    """Returns the seconds of a run over so many people, on so many cores (0: all)."""
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
    """Takes the times and prints them."""
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
        print(f"one after another: {serial:.1f} s, {serial / side:.2f} times that")
        ideal = serial / args.devices
        if args.platform == "cpu":
            one = run(args, folder, "latents", 1, 1)
            two = run(args, folder, "latents", 2, 1)
            # The first one's time holds what is done once for all.
            ideal = (one + (two - one) * (args.people - 1)) / cores
            print(f"one core: {one:.1f} s for a person, {two - one:.1f} s for another")
        print(f"ideal: {ideal:.1f} s; side by side takes {side / ideal:.2f} times that")


if __name__ == "__main__":
    main()
