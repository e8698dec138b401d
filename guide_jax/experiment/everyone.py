"""Runs a mode for every person of a run, and writes the run's tables."""

import functools
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from guide_jax.config_types import Config
from guide_jax.console import Console, duration
from guide_jax.errors import InputError, UnlearningError
from guide_jax.experiment.shares import (
    ALONE,
    MissingError,
    Share,
    outcomes_of_others,
)
from guide_jax.experiment.workers import UnusableError, Worker, spread
from guide_jax.people import Person
from guide_jax.reports import terminal
from guide_jax.reports.html import render_report
from guide_jax.reports.summary import Done, Failed, summarise, to_csv
from guide_jax.storage.atomic import write_json, write_text
from guide_jax.storage.run_folder import (
    PAGE,
    PEOPLE,
    PICTURE,
    RESULTS,
    TABLE,
    PersonFolder,
)
from guide_jax.training import distributed


def run_everyone(
    config: Config,
    workers: Sequence[Worker],
    people: Sequence[Person],
    workdir: Path,
    left_out: Sequence[str] = (),
    share: Share = ALONE,
) -> dict[str, Any]:
    """Runs the workers for all people; one person's failure does not stop the rest.

    Args:
        config: the run's settings.
        workers: each processes one person at a time.
        people: the people of all processes.
        workdir: the folder for the results.
        left_out: a line for each file that was given but is not used.
        share: which of the people this process takes.

    Returns:
        The contents of `workdir/results.json`, which process 0 writes when the other
        processes have ended; empty in these.

    Raises:
        InputError: the only person's photo, or the workdir, cannot be used.
        UnlearningError: some people failed, or their process was lost. Other processes
            than process 0 leave that to process 0.
    """
    if len(people) == 1:
        return _run_one(config, workers[0], people[0], workdir, left_out)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write results to {workdir} ({error})") from error
    earlier = share.begin(workdir)
    console, mine = Console(), share.of(people)
    tables = _Tables(config, people, workdir, left_out, console)
    for person, outcome in _run_share(workers, mine, tables):
        tables.add(person, outcome)
        if share.processes == 1:
            # After each person, so that an interrupted run has tables too.
            tables.write()
        elif share.process and tables.faults:
            share.save_faults(workdir, tables.faults)
    if share.process:
        failed = len(tables.faults)
        console.say(
            f"process {share.process} has done {len(mine) - failed} people,"
            f" {failed} failed; process 0 writes the tables"
        )
        return {}
    if share.processes > 1:

        def find_done(person: Person) -> dict[str, Any] | None:
            return workers[0].done(person, PersonFolder(tables.folder_of(person)))

        for person, outcome in outcomes_of_others(
            share, people, workdir, find_done, console, earlier
        ):
            tables.add(person, outcome)
        tables.write()
    share.remove_faults(workdir)
    return tables.show()


def _run_share(
    workers: Sequence[Worker], people: Sequence[Person], tables: "_Tables"
) -> Iterator[tuple[Person, Any]]:
    """Yields each person with the entry or the exception, in order of completion."""
    started, numbers, ended = time.monotonic(), itertools.count(1), 0

    def work(worker: Worker, person: Person) -> dict[str, Any]:
        left = ""
        if ended:
            seconds = (time.monotonic() - started) / ended * (len(people) - ended)
            left = f", about {duration(seconds)} left"
        tables.console.say(f"[{next(numbers)}/{len(people)}] {person.title}{left}")
        return worker(person, PersonFolder(tables.folder_of(person)))

    each = [functools.partial(work, worker) for worker in workers]
    for outcome in spread(people, each):
        ended += 1
        yield outcome


class _Tables:
    """A run's outcomes, and the tables of them.

    Attributes:
        console: prints lines.
        faults: name of each person who failed -> the reason in one line.
    """

    def __init__(
        self,
        config: Config,
        people: Sequence[Person],
        workdir: Path,
        left_out: Sequence[str],
        console: Console,
    ):
        self._config, self._people, self._workdir = config, people, workdir
        self._left_out, self.console = left_out, console
        self._done: dict[str, Done] = {}
        self._missing: list[str] = []
        self.faults: dict[str, str] = {}
        self._summary: dict[str, Any] = {}

    def folder_of(self, person: Person) -> Path:
        return self._workdir / PEOPLE / person.name

    def add(self, person: Person, outcome: dict[str, Any] | Exception) -> None:
        """Takes a person's entry in results.json, or the exception instead."""
        if isinstance(outcome, MissingError):
            self._missing.append(str(outcome))
        elif isinstance(outcome, Exception):
            self.faults[person.name] = _fault(outcome)
            self.console.say(f"  {person.title} failed: {self.faults[person.name]}")
        else:
            self._done[person.name] = Done(outcome, self.folder_of(person))

    def write(self) -> None:
        """Writes the tables of those who are done or failed so far."""
        done = [self._done[x.name] for x in self._people if x.name in self._done]
        self._summary = summarise(
            done, self._failed(), self._config.fields, self._left_out
        )
        write_json(self._workdir / RESULTS, self._summary)
        _write(self._config, self._workdir, self._summary, done)

    def _failed(self) -> list[Failed]:
        faults = self.faults
        failing = [person for person in self._people if person.name in faults]
        return [Failed(person.title, faults[person.name]) for person in failing]

    def show(self) -> dict[str, Any]:
        """Prints the table and returns it; raises UnlearningError if people failed."""
        page, failed = self._workdir / PAGE, self._failed()
        self.console.say(terminal.summary_table(self._summary))
        self.console.say(f"{page} shows the results; all files are in {self._workdir}")
        count, problems = len(self._people), []
        if failed:
            each = "; ".join(f"{title} ({fault})" for title, fault in failed)
            rest = "" if self._missing else ", the rest are done"
            problems.append(f"{len(failed)} of {count} people failed{rest}: {each}")
        if self._missing:
            problems.append(
                f"{len(self._missing)} of {count} people are missing, because their"
                f" process is not running: {', '.join(self._missing)}; run the same"
                " command again, with any number of processes, to do the rest"
            )
        if problems:
            raise UnlearningError("; ".join(problems))
        return self._summary


def _run_one(
    config: Config,
    worker: Worker,
    person: Person,
    workdir: Path,
    left_out: Sequence[str],
) -> dict[str, Any]:
    """Runs the worker for a run's only person, whose folder is the run's folder."""
    try:
        entry = worker(person, PersonFolder(workdir))
    except UnusableError as error:
        raise (error.__cause__ or error) from error
    # The worker has written them, with the settings of the training that is stored.
    summary = json.loads((workdir / RESULTS).read_text())
    summary["left_out"] = list(left_out)
    write_json(workdir / RESULTS, summary)
    _write(config, workdir, summary, [Done(entry, workdir)])
    Console().say(terminal.person_table(entry))
    Console().say(f"{workdir / PICTURE} shows the result; all files are in {workdir}")
    return summary


def _write(
    config: Config, workdir: Path, summary: dict[str, Any], done: Sequence[Done]
) -> None:
    """Writes `results.csv` and `report.html`."""
    write_text(workdir / TABLE, to_csv(summary))
    write_text(workdir / PAGE, render_report(summary, done, config.name))


def _fault(error: Exception) -> str:
    """Returns an error's message in one line."""
    # In a shared step, the other processes cannot continue without this one.
    if distributed.is_distributed() and not isinstance(
        error, InputError | UnlearningError
    ):
        raise error
    text = " ".join(str(error).split())
    if isinstance(error, InputError | UnlearningError | OSError):
        return text
    return f"{type(error).__name__}: {text}"
