"""Shares people among processes that meet only in the run's folder.

Process i of n takes every n-th person. Processes do not wait for each other's answers,
so if one is lost, only its own people are missing. Process 0 learns from the locks in
the folder who is running, and from the people's folders who is done.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guide_jax.config_types import Config
from guide_jax.console import Console
from guide_jax.errors import UnlearningError
from guide_jax.people import Person
from guide_jax.reports.summary import versions
from guide_jax.storage import fingerprint
from guide_jax.storage.atomic import write_json
from guide_jax.storage.lock import Member, is_running
from guide_jax.storage.origin import SAME_BYTES
from guide_jax.storage.run_folder import FAULTS, PEOPLE, RESULTS

POLL = 1.0  # seconds between two looks at the others
# Settings in which the processes of a run may differ, or which they all imply.
NOT_SHARED = "parallel", "cache", "networks"


class MissingError(UnlearningError):
    """A person whose process ended without a result."""


@dataclass(frozen=True)
class Share:
    """A process's share of a run's people.

    Attributes:
        process: index of this process.
        processes: number of processes.
        run: what names the run in its locks; see `run_name`.
        wait: seconds that process 0 waits for people whose process is not running.
    """

    process: int = 0
    processes: int = 1
    run: str = ""
    wait: float = 0.0

    @property
    def member(self) -> Member | None:
        """What this process locks the run's folder as; None for a single process."""
        return self.other(self.process) if self.processes > 1 else None

    def other(self, process: int) -> Member:
        """Returns what another process of the run locks the folder as."""
        return Member(self.run, process)

    def of(self, people: Sequence[Person], process: int | None = None) -> list[Person]:
        """Returns the people of this process, or of another; there may be none."""
        first = self.process if process is None else process
        return list(people[first :: self.processes])

    def begin(self, workdir: Path) -> "Earlier":
        """Forgets who failed here before; call this when the folder is locked.

        Returns:
            The files of faults of processes that are not running.
        """
        (workdir / FAULTS.format(self.process)).unlink(missing_ok=True)
        others = set(range(self.processes)) - {self.process}
        running = [i for i in others if is_running(workdir, self.other(i))]
        now = [FAULTS.format(i) for i in running]
        earlier = {}
        for path in workdir.glob(FAULTS.format("*")):
            if path.name not in now:
                # Its process may start at this moment, and remove it.
                with contextlib.suppress(FileNotFoundError):
                    earlier[path.name] = path.stat().st_mtime_ns
        return earlier

    def save_faults(self, workdir: Path, faults: Mapping[str, str]) -> None:
        """Saves for process 0 who failed here: name -> the fault in one line."""
        write_json(workdir / FAULTS.format(self.process), faults)

    def remove_faults(self, workdir: Path) -> None:
        """Removes what the processes have saved for process 0."""
        for path in workdir.glob(FAULTS.format("*")):
            path.unlink(missing_ok=True)


ALONE = Share()
Earlier = Mapping[str, int]  # name of a file of faults -> when it was changed


def run_name(
    config: Config, hashes: Mapping[str, str], people: Sequence[Person], what: str
) -> str:
    """Returns a hash of what the processes of a run have in common.

    Args:
        config: the run's settings.
        hashes: role -> hash of the run's network.
        people: everybody of the run. If processes listed others, because a photo has
            been added meanwhile, two of them might take the same person.
        what: the mode.
    """
    settings = {k: v for k, v in config.fields.items() if k not in NOT_SHARED}
    here = versions()
    same = [here[name] for name in SAME_BYTES]
    names = [person.name for person in people]
    processes = config.parallel.processes
    return fingerprint.of([settings, dict(hashes), same, names, processes, what])[:12]


def outcomes_of_others(
    share: Share,
    people: Sequence[Person],
    workdir: Path,
    find_done: Callable[[Person], dict[str, Any] | None],
    console: Console,
    earlier: Earlier,
) -> Iterator[tuple[Person, dict[str, Any] | Exception]]:
    """Waits for the other processes, as process 0.

    A process is waited for as long as it holds its lock, and for `share.wait` seconds
    after that unless its people are done: some are missing, or failed in an earlier run
    so that it may be about to try them again.

    Args:
        share: process 0's.
        people: everybody of the run.
        workdir: the run's folder.
        find_done: returns the entry of a person who is done.
        console: shows the progress.
        earlier: what `Share.begin` has returned.

    Yields:
        Each person with the entry in results.json or an exception: a MissingError if
        the process ended without a result.
    """
    others = {i: share.of(people, i) for i in range(1, share.processes)}
    others = {i: theirs for i, theirs in others.items() if theirs}
    everybody = [person for theirs in others.values() for person in theirs]
    last_running = dict.fromkeys(others, time.monotonic())
    label = "waiting for the other processes"
    with console.bar(label, "person", len(everybody)) as bar:
        while others:
            bar.set_postfix_str(f"of process {', '.join(map(str, others))}")
            for process, theirs in list(others.items()):
                running = is_running(workdir, share.other(process))
                if running:
                    last_running[process] = time.monotonic()
                    continue
                # After the look at the lock, so nothing is written any more.
                faults, old = _faults(workdir / FAULTS.format(process), earlier)
                found = [_outcome(x, faults, process, find_done) for x in theirs]
                missing = any(isinstance(x, MissingError) for x in found)
                idle = time.monotonic() - last_running[process]
                if not (missing or old) or idle >= share.wait:
                    del others[process]
                    yield from zip(theirs, found, strict=True)
            written = sum(
                (workdir / PEOPLE / person.name / RESULTS).exists()
                for person in everybody
            )
            if written > bar.n:
                bar.update(written - bar.n)
            if others:
                time.sleep(POLL)


def _faults(path: Path, earlier: Earlier) -> tuple[dict[str, str], bool]:
    """Returns who failed in a process, and whether that was in an earlier run."""
    try:
        old = earlier.get(path.name) == path.stat().st_mtime_ns
        return json.loads(path.read_text()), old
    except FileNotFoundError:
        return {}, False


def _outcome(
    person: Person,
    faults: Mapping[str, str],
    process: int,
    find_done: Callable[[Person], dict[str, Any] | None],
) -> dict[str, Any] | Exception:
    """Returns the outcome of a person whose process is not running."""
    if person.name in faults:
        return UnlearningError(faults[person.name])
    try:
        entry = find_done(person)
    except Exception as error:  # any failure must leave the rest alone
        return error
    return entry or MissingError(f"{person.title} of process {process}")
