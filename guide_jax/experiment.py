"""A run from its config: people, targets, unlearning, measures, pictures."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from guide_jax import people, report, target
from guide_jax.align import ALIGNMENTS
from guide_jax.errors import InputError, UnlearningError
from guide_jax.networks import load_networks
from guide_jax.page import page
from guide_jax.people import Person
from guide_jax.person_folder import PICTURE, RESULTS, PersonFolder
from guide_jax.render import render
from guide_jax.session import Session
from guide_jax.summary import Done, Failed, summarise, to_csv

MODES = "unlearn", "evaluate", "render"
TABLE, PAGE = "results.csv", "report.html"
COMPUTE = "float32", "bfloat16"
PRECISIONS = "default", "high", "highest"


def run(config: ConfigDict, workdir: Path, mode: str = "unlearn") -> dict:
    """Makes a generator forget people, one by one, and measures what came of it.

    A person's folder is `workdir` itself, or `workdir/people/NAME` where there are
    several. It gets `generator/` (the one that forgot, Orbax), `codes.npz`,
    `metrics.jsonl` (a line for each step), `results.json`, `before_after.png` and
    `pictures/`. What is there already of the same settings and weights is not done
    again, and a training that was broken off goes on from its checkpoint. The workdir
    gets `results.csv`, `results.json` and `report.html`.

    Args:
        config: as `configs/default.py` describes it.
        workdir: made if need be.
        mode: "unlearn"; "evaluate" measures stored generators again; "render" makes
            pictures of one.

    Returns:
        What `workdir/results.json` holds; for "render", its "files".

    Raises:
        InputError: a network, a photo or a setting is wrong or missing.
        UnlearningError: the loss, or a measure of the result, is not finite. With
            several people, that some of them failed; the others are done.
    """
    check(config)
    if mode not in MODES:
        raise InputError(f"--mode={mode}: known are {', '.join(MODES)}")
    # Only the training step may have less: see `losses.Compute`.
    with jax.default_matmul_precision("highest"):
        if mode == "render":
            return {"files": [str(path) for path in render(config, workdir)]}
        listed = people.listed(config.source)
        photos = Path(config.source.image).resolve()
        if config.source.image and workdir.resolve().is_relative_to(photos):
            raise InputError(
                f"the results would go to {workdir}, within the photos' folder, and be"
                " taken for people the next time; choose another --workdir"
            )
        session = Session(config, load_networks(config))
        if len(listed) == 1:
            results = session.person(listed[0], PersonFolder(workdir), mode)
            done = Done(results, workdir)
            _write(workdir, [done], [], config)
            print(report.table(done.results))
            print(f"{workdir / PICTURE} shows it; all results are in {workdir}")
            return done.results
        return _many(config, session, listed, workdir, mode)


def _many(
    config: ConfigDict,
    session: Session,
    listed: list[Person],
    workdir: Path,
    mode: str,
) -> dict:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"no results can go to {workdir} ({error})") from error
    done, failed, summary = [], [], {}
    started = time.monotonic()
    for i, person in enumerate(listed):
        left = ""
        if i:
            seconds = (time.monotonic() - started) / i * (len(listed) - i)
            left = f", about {report.duration(seconds)} left"
        print(f"[{i + 1}/{len(listed)}] {person.title}{left}", flush=True)
        folder = workdir / "people" / person.name
        try:
            results = session.person(person, PersonFolder(folder), mode)
            done.append(Done(results, folder))
        # Whatever it is, it must not lose the others.
        except Exception as error:
            text = " ".join(str(error).split())
            if not isinstance(error, InputError | UnlearningError | OSError):
                text = f"{type(error).__name__}: {text}"
            failed.append(Failed(person.title, text))
            print(f"  failed: {failed[-1].fault}", flush=True)
        # After each person: whoever looks, or breaks it off, has the table so far.
        summary = _write(workdir, done, failed, config)
        report.write_json(workdir / RESULTS, summary)
    print(report.summary_table(summary))
    print(f"{workdir / PAGE} shows it; all results are in {workdir}")
    if failed:
        raise UnlearningError(
            f"{len(failed)} of {len(listed)} people failed, the others are done: "
            + "; ".join(f"{title} ({fault})" for title, fault in failed)
        )
    return summary


def _write(
    workdir: Path, done: list[Done], failed: list[Failed], config: ConfigDict
) -> dict:
    """Writes `results.csv` and `report.html`; returns the summary that they show."""
    summary = summarise(done, failed, config.to_dict())
    report.write_text(workdir / TABLE, to_csv(summary))
    report.write_text(workdir / PAGE, page(summary, done, config.name))
    return summary


def check(config: ConfigDict) -> None:
    """Raises InputError for settings that no run can have."""
    if config.target.name not in target.TARGETS:
        raise InputError(
            f"config.target.name is {config.target.name!r}; known are"
            f" {', '.join(sorted(target.TARGETS))}"
        )
    for name, value in _numbers(config):
        if not math.isfinite(value):
            raise InputError(f"config.{name} is {value}; it must be a finite number")
        if value < 0 and not name.endswith("weight"):
            raise InputError(f"config.{name} is {value}; it must not be negative")
        if name.endswith("seed") and value >= 2**63:
            raise InputError(f"config.{name} is {value}; it must be below 2**63")
    for name, value, known in (
        ("compute", config.compute, COMPUTE),
        ("precision", config.precision, PRECISIONS),
        ("source.align", config.source.align, ALIGNMENTS),
        ("evaluate.align", config.evaluate.align, ("crop", "mtcnn")),
    ):
        if value not in known:
            raise InputError(
                f"config.{name} is {value!r}; known are {', '.join(known)}"
            )
    if config.evaluate.batch < 1:
        raise InputError("config.evaluate.batch is 0; it must be above 0")
    if config.evaluate.fid_samples == 1:
        raise InputError("config.evaluate.fid_samples is 1; at least 2, or 0 for none")
    if config.optimizer.learning_rate == 0:
        raise InputError("config.optimizer.learning_rate is 0; it must be above 0")
    if config.evaluate.others < 2 or config.evaluate.shown > config.evaluate.others:
        raise InputError(
            f"config.evaluate.others is {config.evaluate.others}; at least 2, and as"
            f" many as evaluate.shown ({config.evaluate.shown}), are needed"
        )


def _numbers(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields (dotted name, value) of every number in a config."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield prefix + name, value
