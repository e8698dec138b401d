"""Runs a mode: the table of modes, devices and networks (start reading here)."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from guide_jax.attacks.verdict import in_words
from guide_jax.config import read
from guide_jax.config_types import Config
from guide_jax.console import Console
from guide_jax.errors import InputError, VerdictError
from guide_jax.experiment.attack import AttackJob
from guide_jax.experiment.evaluate import EvaluateJob
from guide_jax.experiment.everyone import run_everyone
from guide_jax.experiment.render import render
from guide_jax.experiment.shares import Share, run_name
from guide_jax.experiment.unlearn import UnlearnJob, make_trainer
from guide_jax.experiment.workers import DeviceWorker, MakeJob
from guide_jax.faces.folders import in_short
from guide_jax.people import Person, left_out, list_people
from guide_jax.storage import fingerprint
from guide_jax.storage.atomic import check_writable
from guide_jax.storage.locate import Networks, load_networks
from guide_jax.storage.lock import locked
from guide_jax.storage.run_folder import RENDER
from guide_jax.training import distributed, sharding
from guide_jax.training.sharding import DeviceGroup


@dataclass(frozen=True)
class Mode:
    """A value of `--mode`.

    Attributes:
        help: one-line description for the command line.
        run: a function (config, workdir, devices) -> results.
        trains: whether devices and processes share training steps.
    """

    help: str
    run: Callable[[Config, Path, list[jax.Device]], dict[str, Any]]
    trains: bool = False


def run(
    config: ConfigDict | Config, workdir: Path, mode: str = "unlearn"
) -> dict[str, Any]:
    """Runs a mode.

    "unlearn" makes the original generator forget each person separately. A person's
    folder is `workdir` itself, or `workdir/people/NAME` if there are several people. It
    receives `generator/` (the unlearned generator, Orbax), `codes.npz`,
    `embeddings.npz`, `metrics.jsonl` (a line for each step), `results.json`,
    `before_after.png` and `pictures/`. Results with the same settings, weights and
    photos are not computed again, and an interrupted training resumes from its
    checkpoint. The workdir receives `results.csv`, `results.json` and `report.html`.

    Args:
        config: the settings, which `configs/default.py` describes.
        workdir: the folder for results, created if needed; "~" is the home folder.
        mode: a key of `MODES`.

    Returns:
        The contents of `workdir/results.json`, or for "render" a dict with the paths of
        its "files". Empty in all processes except process 0.

    Raises:
        InputError: a network, a photo or a setting is wrong or missing.
        UnlearningError: a loss or a measure is not finite, or some of several people
            failed while the rest are done.
    """
    config, workdir = read(config), Path(os.path.expanduser(workdir))
    if mode not in MODES:
        raise InputError(f"--mode={mode}: choose one of {', '.join(MODES)}")
    _cache_programs(config.cache)
    # A training step may use a lower precision; see `config_types.Compute`.
    with jax.default_matmul_precision("highest"):
        devices = choose_devices(config, MODES[mode].trains)
        return MODES[mode].run(config, workdir, devices)


def _run_people(
    make_job: MakeJob, config: Config, workdir: Path, devices: list[jax.Device]
) -> dict[str, Any]:
    """Runs a mode for every person."""
    by_people = config.parallel.over == "people"
    if not by_people and not distributed.is_main():
        networks = load_networks(config)
        _check_same(config, networks)
        make_trainer(config, networks, DeviceGroup(devices)).follow()
        return {}
    people, ignored = list_people(config.source), left_out(config.source)
    photos = Path(config.source.image).resolve()
    if config.source.image and workdir.resolve().is_relative_to(photos):
        raise InputError(
            f"the results would go to {workdir}, inside the photos' folder, and be read"
            " as photos next time; choose another --workdir"
        )
    if ignored:
        Console().say(f"left out: {in_short(ignored)}")
    networks = load_networks(config)
    if by_people:
        share = _share_of(config, networks, people, make_job)
        mine = share.of(people)
        if not mine:
            Console().say(f"process {share.process} is left without people")
            return {}
        workers = [
            DeviceWorker(i, device, config, networks, make_job)
            for i, device in enumerate(devices[: len(mine)])
        ]
        with locked(workdir, share.member):
            return run_everyone(config, workers, people, workdir, ignored, share)
    _check_same(config, networks)
    with locked(workdir):
        job = make_job(config, networks, DeviceGroup(devices), Console())
        try:
            return run_everyone(config, [job], people, workdir, ignored)
        finally:
            job.close()


def _share_of(
    config: Config, networks: Networks, people: Sequence[Person], make_job: MakeJob
) -> Share:
    """Returns this process's share of the people."""
    parallel = config.parallel
    if parallel.processes == 1:
        return Share()
    mode = getattr(make_job, "__name__", "")
    name = run_name(config, networks.hashes, people, mode)
    return Share(parallel.process, parallel.processes, name, parallel.wait)


def _run_render(
    config: Config, workdir: Path, devices: list[jax.Device]
) -> dict[str, Any]:
    """Renders on JAX's first device."""
    del devices
    if config.parallel.processes > 1:
        raise InputError(
            "--mode=render works in a single process; leave out config.parallel"
        )
    # A folder of its own, because people may be forgotten in the workdir meanwhile.
    with locked(workdir / RENDER):
        return render(config, workdir)


def _run_attack(
    config: Config, workdir: Path, devices: list[jax.Device]
) -> dict[str, Any]:
    """Attacks every person's result; raises VerdictError if one is below the aim."""
    summary = _run_people(AttackJob, config, workdir, devices)
    if not summary:  # process 0 gives the verdicts
        return summary
    aim = config.attack.require
    below = [
        f"{entry['title']}: {in_words(entry['verdict'])}"
        for entry in summary["people"]
        if entry["verdict"]["level"] < aim
    ]
    if below:
        raise VerdictError(
            f"{len(below)} of {len(summary['people'])} verdicts are below level {aim}"
            f" (config.attack.require): {'; '.join(below)}"
        )
    return summary


_unlearn, _evaluate = (partial(_run_people, job) for job in (UnlearnJob, EvaluateJob))

MODES = {
    "unlearn": Mode("forget people, unless already done", _unlearn, trains=True),
    "evaluate": Mode("measure stored generators again", _evaluate),
    "attack": Mode("try to get forgotten people back", _run_attack),
    "render": Mode("make images of a stored generator", _run_render),
}


def choose_devices(config: Config, trains: bool) -> list[jax.Device]:
    """Returns the devices that a run uses: of all processes that share its steps.

    Args:
        config: the run's settings.
        trains: whether devices and processes share training steps.

    Raises:
        InputError: the devices or processes cannot share the work in this way.
    """
    settings, processes = config.parallel, jax.process_count()
    if settings.over == "people":
        if processes > 1:
            raise InputError(
                f"JAX has connected {processes} processes, but those that share people"
                " must not be; on a TPU pod, set the variable TPU_HOST_BOUNDS=1,1,1"
            )
        return sharding.devices_of(settings.devices)
    if processes > 1 and not trains:
        raise InputError(
            f"there are {processes} processes, which share training steps; only"
            " --mode=unlearn can use them, or config.parallel.over=people"
        )
    if config.training.erase:
        if processes > 1 or settings.devices > 1:
            raise InputError(
                "config.method='erase' forgets each person on one device;"
                " config.parallel.over=people gives each device a person, in one or"
                " several processes"
            )
        return sharding.devices_of(0)[:1]
    devices = sharding.devices_of(settings.devices)
    if not trains:
        return devices[:1]
    sampling = config.training.sampling
    valid = sharding.valid_counts(sampling, len(devices), processes)
    if settings.devices or not valid:
        sharding.check_divisible(sampling, len(devices), processes)
        return devices
    return sharding.devices_of(valid[-1] // processes)


def _check_same(config: Config, networks: Networks) -> None:
    """Raises InputError if another process would train differently."""
    # Only process 0 knows the people, but all must take as many codes in each step.
    per_step = f"{config.training.codes_per_step} codes per step"
    distributed.check_same(fingerprint.of_training(config, per_step, networks.hashes))


def _cache_programs(cache: Path) -> None:
    """Makes JAX cache compiled programs, unless a cache folder is already set."""
    # A program that is not cached is compiled again; JAX warns about each.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache")
    settings: Any = jax.config
    if not settings.jax_compilation_cache_dir:
        folder = cache.absolute() / "programs"
        try:
            check_writable(folder)
        except OSError as error:  # JAX would warn of each program
            why = f"compiled programs are not cached in {folder} ({error.strerror})"
            Console().say(f"{why}; see --config.cache")
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # Small programs too, because together they take seconds on each device.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
