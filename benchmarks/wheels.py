"""Installs from a folder of wheels what is missing here; see benchmarks/on_gpu.sh.

    python -m benchmarks.wheels wheels build/on_gpu-3.12

It goes into a folder of its own, for PYTHONPATH, because a machine's Python may refuse
to have packages installed.
"""

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


def main(folder: str, target: str) -> int:
    """Installs what is missing.

    Args:
        folder: the folder of wheels.
        target: the folder to install to.

    Returns:
        0 if nothing is missing afterwards, otherwise 1 or pip's exit code.
    """
    wanted = missing()
    if not wanted:
        return 0
    if not Path(folder).is_dir():
        names = ", ".join(wanted)
        print(f"not installed, and there is no folder {folder}: {names}")
        return 1
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    pip += ["--no-index", "--find-links", folder, "--target", target]
    if not subprocess.run([*pip, *wanted], check=False).returncode:
        return 0
    # A package whose wheel is not there leaves the others installable.
    return max(subprocess.run([*pip, name], check=False).returncode for name in wanted)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
