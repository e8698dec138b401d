"""One run from its config: networks, person, target, unlearning, measures, pictures."""

import json
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from guide_jax import data, inversion, report, target, unlearn
from guide_jax.checkpoint import load_network, read_about, save_network
from guide_jax.errors import InputError
from guide_jax.evaluate import Evaluator, Looks
from guide_jax.losses import Judges, LossWeights, PairWeights

KINDS = {
    "generator": ("stylegan2", "mobilestylegan"),
    "encoder": ("w_encoder",),
    "lpips": ("lpips",),
    "identity": ("ir",),
    "judge": ("ir",),
}
BUNDLE = Path(__file__).parent / "demo_weights"
BUNDLED = "demo:"  # a path that starts so is in the bundle


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
        UnlearningError: the loss is not finite.
    """
    started = time.monotonic()
    check(config)
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
    forgetful, train_s = train(config, networks, person.w, w_target, workdir)
    save_network(workdir / "generator", forgetful, about={"config": config.to_dict()})

    results = evaluate(config, networks, forgetful, person, w_target, workdir)
    results["seconds"] = {
        "training": round(train_s, 1),
        "total": round(time.monotonic() - started, 1),
    }
    results["config"] = config.to_dict()
    _write_json(workdir / "results.json", results)
    print(report.table(results))
    print(f"{workdir / 'before_after.png'} shows it; all results are in {workdir}")
    return results


def check(config: ConfigDict) -> None:
    """Raises InputError for settings that no run can have."""
    if config.target.name not in target.TARGETS:
        raise InputError(
            f"config.target.name is {config.target.name!r}; known are"
            f" {', '.join(sorted(target.TARGETS))}"
        )
    counts = {
        "steps": config.steps,
        "source.seed": config.source.seed,
        "loss.adjacency.count": config.loss.adjacency.count,
        "loss.global_.count": config.loss.global_.count,
        "evaluate.shown": config.evaluate.shown,
    }
    for name, value in counts.items():
        if value < 0:
            raise InputError(f"config.{name} is {value}; it must not be negative")
    if not config.optimizer.learning_rate > 0:
        raise InputError(
            f"config.optimizer.learning_rate is {config.optimizer.learning_rate};"
            " it must be above 0"
        )
    if config.evaluate.others < 2 or config.evaluate.shown > config.evaluate.others:
        raise InputError(
            f"config.evaluate.others is {config.evaluate.others}; at least 2, and as"
            f" many as evaluate.shown ({config.evaluate.shown}), are needed"
        )


def prepare(workdir: Path) -> None:
    """Makes the folder for the results.

    Raises:
        InputError: it can't be made, or the generator would have no place in it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if (workdir / "generator").exists():
            read_about(workdir / "generator")  # an earlier run's, to be replaced
    except (OSError, ValueError) as error:
        raise InputError(f"no results can go to {workdir} ({error})") from error


def load_networks(config: ConfigDict) -> dict[str, nnx.Module]:
    """Loads the networks that a run needs; the encoder only where there is a photo.

    Raises:
        InputError: some are missing (all are named) or can't be read.
    """
    roles = [r for r in config.networks if r != "encoder" or config.source.image]
    paths = {role: locate(config.networks[role].path) for role in roles}
    missing = [role for role, path in paths.items() if not path.exists()]
    if missing:
        raise InputError(_missing(config, missing))
    try:
        networks = {role: load_network(path) for role, path in paths.items()}
    except ValueError as error:
        raise InputError(f"{error}; convert it again with python -m convert") from error
    for role, network in networks.items():
        if network.kind not in KINDS[role]:
            raise InputError(
                f"{paths[role]} is a {network.kind} network, but config.networks.{role}"
                f" has to be one of: {', '.join(KINDS[role])}"
            )
    return networks


def locate(path: str) -> Path:
    """Returns where a network is; "demo:NAME" is in the bundle."""
    if path.startswith(BUNDLED):
        return BUNDLE / path.removeprefix(BUNDLED)
    return Path(path)


def _missing(config: ConfigDict, roles: list[str]) -> str:
    """Says which networks are missing; how to get them, where the config knows."""
    places = [(role, config.networks[role]) for role in roles]
    if not any(network.published for _, network in places):
        return "; ".join(
            f"{network.path!r}: no such network; check --config.networks.{role}.path"
            for role, network in places
        )
    lines = [f"{len(roles)} converted networks of config {config.name!r} are missing:"]
    files = []
    for role, network in places:
        published = network.published or "no published file is named in the config"
        lines.append(f"  {role}: {network.path} (from {published})")
        files += [word[:-1] for word in published.split() if word.endswith(FILE_MARKS)]
    lines.append(
        f"Download them, then run: python -m convert {' '.join(files)} --out weights"
    )
    return "\n".join(lines)


FILE_MARKS = (".pkl:", ".pt:", ".pth:")


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
    with (workdir / "metrics.jsonl").open("w") as log:

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
    judges = Judges(networks["lpips"], networks["judge"])
    evaluator = Evaluator(generator, judges)
    z = jax.random.normal(
        jax.random.key(config.evaluate.seed), (config.evaluate.others, generator.z_dim)
    )
    w_others = generator.mapping(z, psi=config.source.psi)
    print(f"measuring {len(w_others)} other people before and after")
    before = evaluator.look(generator, w_others)
    after = evaluator.look(forgetful, w_others)
    own = evaluator.look(generator, person.w), evaluator.look(forgetful, person.w)
    results = evaluator.compare(before, after, own)
    if person.photo is not None:
        results["inversion"] = inversion.quality(evaluator, person.photo, own[0])
    _draw(
        config, evaluator, generator, person, w_target, (before, after, *own), workdir
    )
    return results


def _draw(
    config: ConfigDict,
    evaluator: Evaluator,
    generator: nnx.Module,
    person: Person,
    w_target: jax.Array,
    looks: tuple[Looks, Looks, Looks, Looks],
    workdir: Path,
) -> None:
    before, after, own_before, own_after = (look.images for look in looks)
    row = {} if person.photo is None else {"photo": person.photo[0]}
    row |= {
        "before" if person.photo is None else "reconstruction before": own_before[0],
        "after": own_after[0],
        "target": evaluator.look(generator, w_target).images[0],
    }
    shown = config.evaluate.shown
    report.before_after(
        workdir / "before_after.png",
        row,
        (before[:shown], after[:shown]),
        f"Forgetting {person.name}: {config.steps} steps,"
        f" target {config.target.name!r}",
    )


def _write_json(path: Path, data: dict) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=2) + "\n")
    part.replace(path)
