"""Runs everything that is open on a GPU, in parts; benchmarks/on_gpu.sh starts it.

    benchmarks/on_gpu.sh runs/gpu
    benchmarks/on_gpu.sh --minutes 9 runs/gpu
    benchmarks/on_gpu.sh --only step-1024-bfloat16 --again -- runs/gpu
    benchmarks/on_gpu.sh --dry-run runs/dry

Each part is a process of its own, with a time limit. OUT/results.jsonl gets every
result as soon as it is there, OUT/results.md the tables, OUT/logs the output. A part
that is done or failed is not run again, unless with --again; one that was cut off, had
no time, or lacked something, is. The exit code is the number of parts that failed.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import records
from benchmarks.gpu_parts import RESULTS, Part, parts

ROOT = Path(__file__).parent.parent
LEAST = 60  # seconds; with less, no part is started
MOST = 540  # seconds of a part in a dry run
GRACE = 15  # seconds between the request to end and the end
FINAL = ("done", "failed")  # outcomes after which a part is not run again
FAILED = "failed"
DEVICE = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='|')"


class Outcome(NamedTuple):
    """How a part ended: a word, a note, and the seconds it took."""

    word: str
    note: str = ""
    seconds: float = 0.0


def run(command: tuple[str, ...], limit: float, log: Path, variables: dict) -> Outcome:
    """Runs Python with some arguments and a time limit.

    Args:
        command: the arguments.
        limit: seconds.
        log: file for its output.
        variables: the environment variables.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=variables,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its own processes end with it
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            _end(process)
            code = None
        except BaseException:
            _end(process)
            raise
    seconds = time.monotonic() - started
    if code is None:
        return Outcome("cut off", f"after {limit:.0f} s", seconds)
    if code:
        return Outcome(FAILED, f"exit code {code}: {_last_line(log)}", seconds)
    return Outcome("done", "", seconds)


def _end(process: subprocess.Popen) -> None:
    """Ends a process and its children; main.py stores what it has on an interrupt."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line]
    return lines[-1][:200] if lines else "no output"


def run_part(part: Part, args: argparse.Namespace, left: float) -> Outcome:
    """Runs a part, if nothing that it needs is missing, and stores its results.

    Args:
        part: the part.
        args: the command line.
        left: seconds left for this call.
    """
    missing = part.needs()
    if args.dry_run and part.name.startswith(("forget", "attack")):
        missing = None  # their dry forms use the bundled networks
    if missing:
        return Outcome("skipped", missing)
    command = part.dry if args.dry_run else part.command
    if command is None:
        return Outcome("left out", "of the dry run; another part covers it")
    if left < LEAST:
        return Outcome("not started", f"{max(left, 0):.0f} s left")
    longest = MOST if args.dry_run else part.limit  # the CPU may be busy
    limit = min(longest, left)
    log = args.out / "logs" / f"{part.name}.log"
    outcome = run(command, limit, log, _variables(part, args.dry_run))
    if outcome.word == "cut off" and limit == longest:
        # The time left was not the reason, so another call would not get further.
        outcome = outcome._replace(word=FAILED)
    try:
        rows = part.collect() if outcome.word in FINAL else []
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        rows = []
        if outcome.word != FAILED:
            outcome = Outcome(FAILED, f"no results: {error}", outcome.seconds)
    for row in rows:
        records.append(args.out / RESULTS, row)
    return outcome


def _variables(part: Part, dry: bool) -> dict[str, str]:
    variables = dict(os.environ)
    # Several programs use the GPU in turn or at a time.
    variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if dry:
        return variables | {"JAX_PLATFORMS": "cpu"}
    return variables | dict(part.variables)


def device() -> tuple[str, str]:
    """Returns the platform and the name of JAX's first device.

    In a process of its own, because it takes memory on the GPU until it ends.
    """
    found = subprocess.run(
        [sys.executable, "-c", DEVICE], capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise SystemExit(f"JAX does not start: {found.stderr.strip()[-300:]}")
    platform, name = found.stdout.strip().splitlines()[-1].split("|")
    return platform, name


def finished(out: Path, dry: bool) -> set[str]:
    """Returns the names of the parts that are not to be run again."""
    words = {}
    for record in records.read(out / RESULTS):
        if record["benchmark"] == "parts" and record["dry"] == dry:
            words[record["part"]] = record["outcome"]
    return {name for name, word in words.items() if word in FINAL}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=25, help="of this call")
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts to run")
    parser.add_argument("--again", action="store_true", help="also run finished parts")
    parser.add_argument(
        "--dry-run", action="store_true", help="everything at tiny sizes on the CPU"
    )
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    known = [part.name for part in parts(args.out)]
    if unknown := set(args.only or ()) - set(known):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(known)}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the parts; returns the number of parts that failed."""
    args = parse(argv)
    # As on an interrupt, the running part ends, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    until = time.monotonic() + 60 * args.minutes
    platform, name = ("cpu", "cpu") if args.dry_run else device()
    if platform == "cpu" and not args.dry_run:
        raise SystemExit("JAX finds no GPU; --dry-run tries everything on the CPU")
    skip = set() if args.again else finished(args.out, args.dry_run)
    failures = 0
    for part in parts(args.out):
        if part.name in skip or (args.only and part.name not in args.only):
            continue
        print(f"{part.name} ...", flush=True)
        outcome = run_part(part, args, until - time.monotonic())
        failures += outcome.word == FAILED
        print(f"  {outcome.word} {outcome.note} ({outcome.seconds:.0f} s)", flush=True)
        row = {"benchmark": "parts", "part": part.name, "outcome": outcome.word}
        row |= {"note": outcome.note, "seconds": outcome.seconds}
        row |= {"device": name, "dry": args.dry_run}
        records.append(args.out / RESULTS, row)
        rows = records.read(args.out / RESULTS)
        records.write_markdown(args.out / "results.md", f"Measured on {name}", rows)
    print(f"{failures} failed; the tables are in {args.out / 'results.md'}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
