"""One program at a time in a folder."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading

import pytest

from guide_jax.errors import InputError
from guide_jax.storage.lock import LOCK, Member, is_running, locked

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
    with (
        pytest.raises(InputError, match=r"no locks are possible there .*choose a --w"),
        locked(tmp_path, Member("a", 0)),
    ):
        raise AssertionError("processes cannot see each other")


# Several processes of one run ---------------------------------------------------------


def test_the_processes_of_a_run_share_its_folder(tmp_path):
    first, second = Member("a", 0), Member("a", 1)
    with locked(tmp_path, second):
        assert not is_running(tmp_path, first)
        with locked(tmp_path, first):
            assert is_running(tmp_path, first)
        assert is_running(tmp_path, second)
        assert not is_running(tmp_path, first)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("holder", "second", "message"),
    [
        (Member("a", 1), Member("a", 1), r"in use by process \d+ on \S+; wait until"),
        (
            Member("a", 1),
            Member("b", 0),
            "in a run with other settings, people, weig",
        ),
        (Member("a", 1), None, r"in use by process \d+ on \S+; wait until"),
        (None, Member("a", 1), r"in use by process \d+ on \S+; wait until"),
    ],
)
def test_another_run_and_the_same_process_are_refused(
    tmp_path, holder, second, message
):
    with locked(tmp_path, holder):
        before = list(tmp_path.iterdir())
        with (
            pytest.raises(InputError, match=message),
            locked(tmp_path, second),
        ):
            raise AssertionError("locked twice")
        assert list(tmp_path.iterdir()) == before
    with locked(tmp_path, second):
        pass


def test_locks_of_a_killed_run_are_removed(tmp_path):
    for name in (LOCK, f"{LOCK}_a_0", f"{LOCK}_b_1"):
        (tmp_path / name).write_text("process 1 on a host that is gone")
    with locked(tmp_path, Member("b", 0)):
        left = {path.name for path in tmp_path.iterdir()}
        # Process 1 of this run may be about to take its lock again.
        assert left == {f"{LOCK}_b_0", f"{LOCK}_b_1"}
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_look_at_a_lock_does_not_keep_its_owner_out(tmp_path):
    path = tmp_path / f"{LOCK}_a_0"
    path.touch()
    look = path.open()
    fcntl.flock(look, fcntl.LOCK_SH)
    threading.Timer(0.2, look.close).start()
    with locked(tmp_path, Member("a", 0)):
        assert is_running(tmp_path, Member("a", 0))
