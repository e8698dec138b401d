"""How much memory is free, by the limits that a system can set."""

import subprocess
import sys

import psutil
import pytest

from guide_jax.training import memory

MEGABYTE = 10**6


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    """Lets the machine have 900 MB available."""
    have = psutil.virtual_memory()._replace(available=900 * MEGABYTE)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: have)


def groups(root, cgroup, files):
    """Writes `proc/self/cgroup` and files below `sys/fs/cgroup`."""
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def second(folder, limit, used, cached=0):
    """Returns the files of a control group of version 2."""
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": used,
        f"{folder}/memory.stat": f"anon 5\ninactive_file {cached}",
    }


def first(folder, limit, used, cached=0):
    """Returns the files of a control group of version 1."""
    return {
        f"memory/{folder}/memory.limit_in_bytes": limit,
        f"memory/{folder}/memory.usage_in_bytes": used,
        f"memory/{folder}/memory.stat": f"cache 5\ntotal_inactive_file {cached}",
    }


def test_without_limits_it_is_what_the_machine_has_available(tmp_path):
    assert memory.free(tmp_path) == 900 * MEGABYTE
    unlimited = first(".", 9223372036854771712, 7) | second("a", "max", 7)
    root = groups(tmp_path, "4:memory:/\n0::/a", unlimited)
    assert memory.free(root) == 900 * MEGABYTE


@pytest.mark.parametrize(
    ("cgroup", "files", "left"),
    [
        # The group's own limit, less its usage that is not a cache of files.
        ("0::/a/b", second("a/b", 1000, 700, 100), 400),
        ("4:cpu,memory:/a", first("a", 1000, 700, 100), 400),
        # The limit of a group around it.
        ("0::/a/b", second("a", 1000, 700) | second("a/b", "max", 600), 300),
        ("0::/a/b", second("a", 1000, 700) | second("a/b", 800, 600), 200),
        # A container sees its own group as the root, under the host's path or not.
        ("0::/", second(".", 1000, 700), 300),
        ("0::/docker/123", second(".", 1000, 700), 300),
        ("4:memory:/docker/123\n1:cpu:/x", first(".", 1000, 700), 300),
        # Both versions side by side.
        ("4:memory:/a\n0::/", first("a", 1000, 400) | second("unified", "max", 1), 600),
        ("4:memory:/a", first("a", 1000, 1100), 0),
    ],
)
def test_control_groups_limit_it(tmp_path, cgroup, files, left):
    assert memory.free(groups(tmp_path, cgroup, files)) == left


def test_other_groups_do_not_limit_it(tmp_path):
    files = second("other", 1000, 700) | first("other", 1000, 700)
    root = groups(tmp_path, "4:memory:/a\n0::/a", files)
    assert memory.free(root) == 900 * MEGABYTE


def test_ulimit_v_limits_it():
    code = (
        "import psutil, resource\n"
        "from guide_jax.training import memory\n"
        "used = psutil.Process().memory_info().vms\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_AS)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, hard))\n"
        "print(memory.free())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 250_000_000 < int(done.stdout) <= 300_000_000, done.stderr
