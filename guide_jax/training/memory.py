"""How much of the machine's memory is free for this process."""

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

# Where the kernel mounts the memory limits of control groups: versions 2 and 1.
_MOUNTS = "sys/fs/cgroup", "sys/fs/cgroup/unified", "sys/fs/cgroup/memory"
# Names of the limit and of the usage, and of the part of it that is freed on demand.
_NAMES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free(root: Path = Path("/")) -> int:
    """Returns how many bytes this process can still take.

    This is the least of what the machine has available, what the process's control
    groups (those of a container, for example) leave, and what `ulimit -v` leaves.

    Args:
        root: folder that holds `proc` and `sys`.
    """
    found = [psutil.virtual_memory().available, *_left_by_groups(root)]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(found))


def _left_by_groups(root: Path) -> Iterator[int]:
    """Yields what the process's control group, and each one around it, leaves."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    groups = [line.split(":", 2) for line in lines]
    own = [
        Path(path.lstrip("/"))
        for _, controllers, path in groups
        if not controllers or "memory" in controllers.split(",")
    ]
    # In a container, the mount may already be the group, whose path is the host's.
    folders = {
        root / mount / each
        for mount in _MOUNTS
        for path in own
        for each in (path, *path.parents)
    }
    for folder in folders:
        for names in _NAMES:
            if (left := _left(folder, *names)) is not None:
                yield left


def _left(folder: Path, limit: str, usage: str, freed_on_demand: str) -> int | None:
    """Returns a group's limit less its usage; None without a limit."""
    try:
        most = (folder / limit).read_text().strip()
        if most == "max":
            return None
        used = int((folder / usage).read_text())
        stat = (folder / "memory.stat").read_text().split()
    except (OSError, ValueError):
        return None
    cached = dict(zip(stat[::2], stat[1::2], strict=False)).get(freed_on_demand, 0)
    return int(most) - used + int(cached)
