"""One run from its config: networks, person, target, unlearning, measures, pictures."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from guide_jax import data, inversion, report, target, unlearn
from guide_jax.checkpoint import read_about, save_network
from guide_jax.errors import InputError, UnlearningError
from guide_jax.evaluate import Evaluator
from guide_jax.losses import Judges, LossWeights, PairWeights
from guide_jax.networks import load_networks

PRECISIONS = "default", "high", "highest"
METRICS, RESULTS, PICTURE = "metrics.jsonl", "results.json", "before_after.png"


class Person(NamedTuple):
    """Who is to be forgotten.

    Attributes:
        w: code `[1, L, D]`.
        photo: `[1, H, W, 3]`, or None for a sampled person.
        name: for captions.
    """

    w: jax.Array
    photo: np.ndarray | None
    name: str


def run(config: ConfigDict, workdir: Path) -> dict:
    """Makes a generator forget one person and measures what came of it.

    Writes to `workdir`: `generator/` (the one that forgot, Orbax), `metrics.jsonl` (a
    line for each step), `results.json`, `before_after.png`.

    Args:
        config: as `configs/default.py` describes it.
        workdir: made if need be.

    Returns:
        What `results.json` holds.

    Raises:
        InputError: a network, a photo or a setting is wrong or missing.
        UnlearningError: the loss, or a measure of the result, is not finite.
    """
    check(config)
    with jax.default_matmul_precision(config.precision):
        return _run(config, workdir)


def _run(config: ConfigDict, workdir: Path) -> dict:
    started = time.monotonic()
    networks = load_networks(config)
    generator = networks["generator"]
    person = find_person(config, generator, networks.get("encoder"))
    w_avg = generator.mapping.w_avg[...]
    w_target = target.TARGETS[config.target.name](
        person.w, w_avg, config.target.distance
    )
    if not np.isfinite(w_target).all():
        raise InputError(
            "the person's code is the mean w itself, from which no direction leads"
            " away; choose another config.source.seed, or source.psi above 0"
        )
    prepare(workdir)
    print(
        f"forgetting {person.name} ({config.name}, {generator.resolution} px,"
        f" {config.steps} steps, target {config.target.name!r});"
        f" results go to {workdir}"
    )
    try:
        forgetful, train_s = train(config, networks, person.w, w_target, workdir)
    except UnlearningError:
        (workdir / f"{METRICS}.part").unlink()
        raise
    for name in (RESULTS, PICTURE):  # an earlier run's don't belong to what follows
        (workdir / name).unlink(missing_ok=True)
    save_network(workdir / "generator", forgetful, about={"config": config.to_dict()})

    results = evaluate(config, networks, forgetful, person, w_target, workdir)
    results["seconds"] = {
        "training": round(train_s, 1),
        "total": round(time.monotonic() - started, 1),
    }
    results["config"] = config.to_dict()
    part = workdir / f"{RESULTS}.part"
    part.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
    part.replace(workdir / RESULTS)
    print(report.table(results))
    print(f"{workdir / PICTURE} shows it; all results are in {workdir}")
    return results


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
    if config.precision not in PRECISIONS:
        raise InputError(
            f"config.precision is {config.precision!r}; known are"
            f" {', '.join(PRECISIONS)}"
        )
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


def prepare(workdir: Path) -> None:
    """Makes the folder for the results.

    Raises:
        InputError: it can't be made or written to, or the generator would have no
            place in it.
    """
    try:
        if (workdir / "generator").exists():
            read_about(workdir / "generator")  # an earlier run's, to be replaced
        for name in (METRICS, RESULTS, PICTURE):
            if (workdir / name).is_dir():
                raise IsADirectoryError(f"{name} is a folder there")
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / f"{METRICS}.part").touch()
    except (OSError, ValueError) as error:
        raise InputError(f"no results can go to {workdir} ({error})") from error


def find_person(
    config: ConfigDict, generator: nnx.Module, encoder: nnx.Module | None
) -> Person:
    """Inverts the photo, or samples the person that the seed says."""
    source = config.source
    if source.image:
        photo = data.load_photo(source.image, generator.resolution)
        w = inversion.invert(encoder, generator, photo)
        return Person(w, photo, Path(source.image).name)
    z = data.z_of_seed(source.seed, generator.z_dim)
    w = generator.mapping(z, psi=source.psi)
    return Person(w, None, f"seed {source.seed}")


def train(
    config: ConfigDict,
    networks: dict[str, nnx.Module],
    w_u: jax.Array,
    w_target: jax.Array,
    workdir: Path,
) -> tuple[nnx.Module, float]:
    """Runs the unlearning; returns the generator that forgot and the seconds spent."""
    loss = config.loss
    started = time.monotonic()
    part = workdir / f"{METRICS}.part"
    with part.open("w") as log:

        def on_step(step: int, terms: dict[str, float]) -> None:
            seconds = round(time.monotonic() - started, 2)
            line = {"step": step, **terms, "seconds": seconds}
            print(json.dumps(line), file=log, flush=True)

        forgetful = unlearn.unlearn(
            networks["generator"],
            Judges(networks["lpips"], networks["identity"]),
            w_u,
            w_target,
            steps=config.steps,
            learning_rate=config.optimizer.learning_rate,
            weights=LossWeights(
                _pair_weights(loss.local),
                _pair_weights(loss.adjacency),
                loss.global_.weight,
            ),
            draws=unlearn.Draws(
                loss.adjacency.count,
                loss.global_.count,
                loss.adjacency.alpha_max,
                loss.psi,
            ),
            key=jax.random.key(config.seed),
            on_step=on_step,
        )
    part.replace(workdir / METRICS)
    return forgetful, time.monotonic() - started


def _pair_weights(part: ConfigDict) -> PairWeights:
    return PairWeights(part.mse_weight, part.lpips_weight, part.id_weight, part.weight)


def evaluate(
    config: ConfigDict,
    networks: dict[str, nnx.Module],
    forgetful: nnx.Module,
    person: Person,
    w_target: jax.Array,
    workdir: Path,
) -> dict:
    """Measures one unlearning and draws `before_after.png`."""
    generator = networks["generator"]
    evaluator = Evaluator(generator, Judges(networks["lpips"], networks["judge"]))
    z = jax.random.normal(
        jax.random.key(config.evaluate.seed), (config.evaluate.others, generator.z_dim)
    )
    w_others = generator.mapping(z, psi=config.source.psi)
    print(f"measuring {len(w_others)} other people before and after")
    others = evaluator.others(generator, forgetful, w_others, config.evaluate.shown)
    own = evaluator.look(generator, person.w), evaluator.look(forgetful, person.w)
    results = evaluator.compare(others, own)
    if not np.isfinite(list(results.values())).all():
        raise UnlearningError(
            f"the generator came out broken, its measures are not finite: {results};"
            " a lower learning rate may help"
        )
    row = {"before": own[0].images[0]}
    if person.photo is not None:
        results["inversion"] = evaluator.likeness(person.photo, own[0])
        row = {"photo": person.photo[0], "reconstruction before": own[0].images[0]}
    row |= {
        "after": own[1].images[0],
        "target": evaluator.look(generator, w_target).images[0],
    }
    report.before_after(
        workdir / PICTURE,
        row,
        others.shown,
        f"Forgetting {person.name}: {config.steps} steps,"
        f" target {config.target.name!r}",
    )
    return results
