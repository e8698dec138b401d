"""Runs a mode for every person of a run, and writes the run's tables."""

import functools
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guide_jax.config_types import Config
from guide_jax.console import Console, duration
from guide_jax.errors import InputError, UnlearningError
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
) -> dict[str, Any]:
    """Runs the workers for all people; one person's failure does not stop the rest.

    Args:
        config: the run's settings.
        workers: each processes one person at a time.
        people: the people.
        workdir: the folder for the results.
        left_out: a line for each file that was given but is not used.

    Returns:
        The contents of `workdir/results.json`.

    Raises:
        InputError: the only person's photo, or the workdir, cannot be used.
        UnlearningError: some people failed.
    """
    if len(people) == 1:
        return _run_one(config, workers[0], people[0], workdir, left_out)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write results to {workdir} ({error})") from error
    console, started = Console(), time.monotonic()
    order = {person.name: i for i, person in enumerate(people)}
    done: dict[int, Done] = {}
    failed: dict[int, Failed] = {}
    numbers = itertools.count(1)

    def folder_of(person: Person) -> Path:
        return workdir / PEOPLE / person.name

    def work(worker: Worker, person: Person) -> dict[str, Any]:
        left, ended = "", len(done) + len(failed)
        if ended:
            seconds = (time.monotonic() - started) / ended * (len(people) - ended)
            left = f", about {duration(seconds)} left"
        console.say(f"[{next(numbers)}/{len(people)}] {person.title}{left}")
        return worker(person, PersonFolder(folder_of(person)))

    summary: dict[str, Any] = {}
    each = [functools.partial(work, worker) for worker in workers]
    for person, outcome in spread(people, each):
        index = order[person.name]
        if isinstance(outcome, Exception):
            failed[index] = Failed(person.title, _fault(outcome))
            console.say(f"  {person.title} failed: {failed[index].fault}")
        else:
            done[index] = Done(outcome, folder_of(person))
        # Written after each person, so that an interrupted run has tables too.
        people_done = _in_order(done)
        summary = summarise(people_done, _in_order(failed), config.fields, left_out)
        write_json(workdir / RESULTS, summary)
        _write(config, workdir, summary, people_done)
    console.say(terminal.summary_table(summary))
    console.say(f"{workdir / PAGE} shows the results; all files are in {workdir}")
    if failed:
        raise UnlearningError(
            f"{len(failed)} of {len(people)} people failed, the rest are done: "
            + "; ".join(f"{title} ({fault})" for title, fault in _in_order(failed))
        )
    return summary


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


def _in_order(found: dict[int, Any]) -> list[Any]:
    return [found[i] for i in sorted(found)]


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
