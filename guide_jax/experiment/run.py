"""A run from its config: people, targets, unlearning, measures, pictures."""

import functools
import itertools
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from guide_jax import people, target
from guide_jax.errors import InputError, UnlearningError
from guide_jax.experiment import from_config
from guide_jax.experiment.render import render
from guide_jax.experiment.session import Session
from guide_jax.experiment.workers import UnusableError, Worker, spread, worker_on
from guide_jax.faces.align import ALIGNMENTS
from guide_jax.people import Person
from guide_jax.reports import report
from guide_jax.reports.html import page
from guide_jax.reports.summary import Done, Failed, summarise, to_csv
from guide_jax.storage import fingerprint
from guide_jax.storage.locate import load_networks
from guide_jax.storage.network_file import network_hash
from guide_jax.storage.run_folder import PICTURE, RESULTS, PersonFolder
from guide_jax.training import distributed, sharding
from guide_jax.training.sharding import Team

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
    _keep_programs(Path(config.cache))
    # Only the training step may have less: see `losses.Compute`.
    with jax.default_matmul_precision("highest"):
        devices = _devices(config, mode)
        if mode == "render":
            return {"files": [str(path) for path in render(config, workdir)]}
        if not distributed.is_first():
            networks = load_networks(config)
            _check_same(config, networks)
            from_config.unlearner(config, networks, Team(devices)).follow()
            return {}
        listed = people.listed(config.source)
        photos = Path(config.source.image).resolve()
        if config.source.image and workdir.resolve().is_relative_to(photos):
            raise InputError(
                f"the results would go to {workdir}, within the photos' folder, and be"
                " taken for people the next time; choose another --workdir"
            )
        networks = load_networks(config)
        if config.parallel.over == "people":
            on = [worker_on(*x, config, networks) for x in enumerate(devices)]
            return _people(config, on[: len(listed)], listed, workdir, mode)
        there = len(sharding.devices_of(config.parallel.devices))
        if mode == "unlearn" and len(devices) < there:
            print(
                f"{len(devices)} of {there} devices share each step: the adjacent and"
                " the global latents divide over no more (config.parallel)"
            )
        _check_same(config, networks)
        session = Session(config, networks, team=Team(devices))
        try:
            return _people(config, [session.person], listed, workdir, mode)
        finally:
            session.dismiss()


def _check_same(config: ConfigDict, networks: dict[str, nnx.Module]) -> None:
    """Raises InputError where another process would train otherwise."""
    if distributed.together():
        hashes = {role: network_hash(network) for role, network in networks.items()}
        distributed.check_same(fingerprint.of_training(config, "", hashes))


def _keep_programs(cache: Path) -> None:
    """Has JAX keep compiled programs, unless it is told elsewhere already."""
    if not jax.config.jax_compilation_cache_dir:
        folder = str(cache.resolve() / "programs")
        jax.config.update("jax_compilation_cache_dir", folder)
        # The many small ones too: together they take seconds, on each device.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _devices(config: ConfigDict, mode: str) -> list[jax.Device]:
    """Returns the devices of all processes that the config asks for.

    Raises:
        InputError: they can't share the work in that way.
    """
    settings, processes = config.parallel, jax.process_count()
    if processes > 1 and (mode != "unlearn" or settings.over == "people"):
        what = "--mode=unlearn" if mode != "unlearn" else "config.parallel.over=latents"
        raise InputError(
            f"there are {processes} processes, which share the steps of a training:"
            f" only {what} needs them"
        )
    devices = sharding.devices_of(settings.devices)
    if settings.over == "people":
        return devices
    if mode != "unlearn":
        return devices[:1]
    draws = from_config.draws(config.loss)
    fit = sharding.fitting(draws, len(devices), processes)
    if fit and not settings.devices:
        return sharding.devices_of(fit[-1] // processes)
    sharding.check(draws, len(devices), processes)
    return devices


def _people(
    config: ConfigDict,
    workers: list[Worker],
    listed: list[Person],
    workdir: Path,
    mode: str,
) -> dict:
    """Does the work for all people; one of several that fails doesn't stop the others.

    Returns:
        What `workdir/results.json` holds.
    """
    if len(listed) == 1:
        try:
            results = workers[0](listed[0], PersonFolder(workdir), mode)
        except UnusableError as error:
            raise error.__cause__ from error
        _write(workdir, [Done(results, workdir)], [], config)
        print(report.table(results))
        print(f"{workdir / PICTURE} shows it; all results are in {workdir}")
        return results
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"no results can go to {workdir} ({error})") from error
    started = time.monotonic()
    order = {person.name: i for i, person in enumerate(listed)}
    done: dict[int, Done] = {}
    failed: dict[int, Failed] = {}
    begun = itertools.count(1)

    def work(worker: Worker, person: Person) -> dict:
        left, ended = "", len(done) + len(failed)
        if ended:
            seconds = (time.monotonic() - started) / ended * (len(listed) - ended)
            left = f", about {report.duration(seconds)} left"
        _print(f"[{next(begun)}/{len(listed)}] {person.title}{left}")
        return worker(person, PersonFolder(workdir / "people" / person.name), mode)

    summary = {}
    each = [functools.partial(work, worker) for worker in workers]
    for person, outcome in spread(listed, each):
        place = order[person.name]
        if isinstance(outcome, Exception):
            failed[place] = Failed(person.title, _fault(outcome))
            _print(f"  {person.title} failed: {failed[place].fault}")
        else:
            done[place] = Done(outcome, workdir / "people" / person.name)
        # After each person: whoever looks, or breaks it off, has the table so far.
        in_order = [[found[i] for i in sorted(found)] for found in (done, failed)]
        summary = _write(workdir, *in_order, config)
        report.write_json(workdir / RESULTS, summary)
    print(report.summary_table(summary))
    print(f"{workdir / PAGE} shows it; all results are in {workdir}")
    if failed:
        raise UnlearningError(
            f"{len(failed)} of {len(listed)} people failed, the others are done: "
            + "; ".join(f"{title} ({fault})" for title, fault in in_order[1])
        )
    return summary


def _fault(error: Exception) -> str:
    """Returns an error in one line."""
    # In a step that other processes wait in, nothing can go on without them.
    if distributed.together() and not isinstance(error, InputError | UnlearningError):
        raise error
    text = " ".join(str(error).split())
    if isinstance(error, InputError | UnlearningError | OSError):
        return text
    return f"{type(error).__name__}: {text}"


def _print(text: str) -> None:
    """Prints a line, above the progress bars if there are some."""
    tqdm.write(text)
    sys.stdout.flush()


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
        ("frugal", config.frugal, ("auto", "always", "never")),
        ("parallel.over", config.parallel.over, ("latents", "people")),
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
