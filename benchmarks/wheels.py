"""Installs from a folder of wheels what is missing here; see benchmarks/on_gpu.sh."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

LIST = Path(__file__).with_name("wheels.txt")


def missing() -> list[str]:
    """Returns the requirements of `wheels.txt` whose package is not installed."""
    lines = [line.strip() for line in LIST.read_text().splitlines()]
    return [line for line in lines if line[:1] not in ("", "#") and not _has(line)]


def _has(requirement: str) -> bool:
    name = re.split(r"[<>=]", requirement)[0]
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main(folder: str) -> int:
    """Installs what is missing; returns pip's exit code."""
    wanted = missing()
    if not wanted:
        return 0
    if not Path(folder).is_dir():
        names = ", ".join(wanted)
        print(f"not installed, and there is no folder {folder}: {names}")
        return 1
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    # A package whose wheel is not there leaves the others installable.
    codes = [
        subprocess.run([*pip, "--no-index", "--find-links", folder, name]).returncode
        for name in wanted
    ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
