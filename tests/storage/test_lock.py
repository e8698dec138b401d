"""One program at a time in a folder."""

import errno
import fcntl
import os
import socket
import subprocess
import sys

import pytest

from guide_jax.errors import InputError
from guide_jax.storage.lock import LOCK, locked

HOLD = """
import sys
from pathlib import Path
from guide_jax.storage.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a program that locks `tmp_path / "work"` and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "work")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_program_is_refused_and_the_first_is_named(tmp_path, holder):
    work = tmp_path / "work"
    with (
        pytest.raises(InputError) as caught,
        locked(work),
    ):
        raise AssertionError("locked twice")
    assert str(caught.value) == (
        f"{work} is in use by process {holder.pid} on {socket.gethostname()}; wait"
        " until it ends, or choose another --workdir"
    )
    with locked(tmp_path / "other"):
        pass
    assert (work / LOCK).exists()


def test_a_killed_program_holds_no_lock(tmp_path, holder):
    work = tmp_path / "work"
    holder.kill()
    holder.wait()
    assert (work / LOCK).exists()
    with locked(work):
        assert (work / LOCK).read_text().startswith(f"process {os.getpid()} on")
    assert list(work.iterdir()) == []


def test_a_program_that_ends_leaves_the_lock_to_the_next(tmp_path, holder):
    holder.communicate("")
    with locked(tmp_path / "work"):
        pass


def test_created_folders_are_removed_if_they_stay_empty(tmp_path):
    work = tmp_path / "deep" / "work"
    with locked(work):
        assert [path.name for path in work.iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []
    with locked(work):
        (work / "result").touch()
    assert [path.name for path in work.iterdir()] == ["result"]
    (tmp_path / "empty").mkdir()
    with locked(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()


def test_a_lock_whose_file_another_program_removed_is_released(tmp_path):
    with locked(tmp_path):
        (tmp_path / LOCK).unlink()
        with locked(tmp_path):
            pass
        (tmp_path / LOCK).write_text("of a third program")
    assert (tmp_path / LOCK).read_text() == "of a third program"


def test_a_folder_that_cannot_be_written_to_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"cannot write results to .*file"),
        locked(tmp_path / "file"),
    ):
        raise AssertionError


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path, monkeypatch, caplog
):
    def flock(file, operation):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        pass
    assert "no locks are possible there (Operation not supported)" in caplog.text
