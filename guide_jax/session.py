"""All people of a run, one by one, with networks loaded and programs compiled once."""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from guide_jax import data, inversion, judges, report, target
from guide_jax.checkpoint import (
    Keeper,
    load_network,
    network_hash,
    read_about,
    save_network,
)
from guide_jax.errors import InputError, UnlearningError
from guide_jax.evaluate import Evaluator, View
from guide_jax.losses import Judges, LossWeights, PairWeights
from guide_jax.people import Person
from guide_jax.unlearn import Draws, Unlearner

METRICS, RESULTS, PICTURE = "metrics.jsonl", "results.json", "before_after.png"
CODES, GENERATOR, PICTURES = "codes.npz", "generator", "pictures"
CHECKPOINT, EMBEDDINGS = "checkpoint", "embeddings.npz"
# Fields that say where things go and how they are counted, not what a training does.
NOT_TRAINING = ("name", "save_every", "cache", "source", "networks", "evaluate")


class Codes(NamedTuple):
    """Where in latent space a person is, and whereto.

    Attributes:
        w_u: `[1, L, D]`.
        w_target: `[1, L, D]`.
        tests: codes of other photos of the person `[T, L, D]`.
    """

    w_u: np.ndarray
    w_target: np.ndarray
    tests: np.ndarray


class Session:
    """The networks of a run, and what is done with them for each person."""

    def __init__(self, config: ConfigDict, networks: dict[str, nnx.Module]):
        """Prepares the training and the measures.

        Args:
            config: as `configs/default.py` describes it.
            networks: from `load_networks`.
        """
        self._config, self._networks = config, networks
        self._generator = networks["generator"]
        self._hashes = {role: network_hash(net) for role, net in networks.items()}
        loss = config.loss
        self._unlearn = Unlearner(
            self._generator,
            Judges(networks["lpips"], networks["identity"]),
            learning_rate=config.optimizer.learning_rate,
            weights=LossWeights(
                _pair_weights(loss.local),
                _pair_weights(loss.adjacency),
                loss.global_.weight,
            ),
            draws=Draws(
                loss.adjacency.count,
                loss.global_.count,
                loss.adjacency.alpha_max,
                loss.psi,
            ),
        )
        if "encoder" in networks:
            self._encode = inversion.make_encode(networks["encoder"], self._generator)
            self._refine = inversion.make_refine(self._generator, networks["lpips"])
        self._evaluator = Evaluator(
            self._generator,
            networks["lpips"],
            {"judge": judges.cropping(networks["judge"])},
            config.evaluate.batch,
        )
        z = jax.random.normal(
            jax.random.key(config.evaluate.seed),
            (config.evaluate.others, self._generator.z_dim),
        )
        self._w_others = np.asarray(self._generator.mapping(z, psi=config.source.psi))

    def person(self, person: Person, folder: Path, mode: str = "unlearn") -> dict:
        """Forgets a person, or measures again what is stored of that.

        Args:
            person: whom.
            folder: for the results; `experiment.run` says what is in it afterwards.
            mode: "unlearn" does what isn't done yet; "evaluate" measures, whatever is
                done, the stored generator.

        Returns:
            What `results.json` holds.

        Raises:
            InputError: the photo or the folder can't be used, or nothing is stored.
            UnlearningError: a loss or a measure is not finite.
        """
        if mode == "evaluate":
            return self._measure(person, folder, *self._stored(person, folder))
        training = self._training_id(person)
        results = _read_results(folder)
        if results and results["ids"] == self._ids(training):
            print(f"{person.title} is done already, with these settings: {folder}")
            return results
        if _trained(folder) != training:
            self._train(person, folder, training)
        _settle(folder)
        return self._measure(person, folder, *self._stored(person, folder))

    # What makes two runs the same ----------------------------------------------------

    def _training_id(self, person: Person) -> str:
        settings = self._config.to_dict()
        settings = {k: v for k, v in settings.items() if k not in NOT_TRAINING}
        source = self._config.source
        who = {"seed": person.seed, "psi": source.psi}
        if person.photo:
            photos = [hash_file(photo) for photo in (person.photo, *person.tests)]
            who = {"photos": photos, "refine": source.refine.to_dict()}
        roles = ("generator", "encoder", "lpips", "identity")
        hashes = {role: self._hashes.get(role) for role in roles}
        return _hash([settings, who, hashes])

    def _ids(self, training: str) -> dict[str, str]:
        settings = self._config.evaluate.to_dict(), self._config.source.psi
        return {"training": training, "measures": _hash([*settings, self._hashes])}

    # Training ------------------------------------------------------------------------

    def _train(self, person: Person, folder: Path, training: str) -> None:
        codes = self._codes(person)
        _prepare(folder)
        config = self._config
        print(
            f"forgetting {person.title} ({config.name}, {self._generator.resolution}"
            f" px, {config.steps} steps, target {config.target.name!r});"
            f" results go to {folder}"
        )
        keeper = Keeper(folder / CHECKPOINT, training, config.save_every)
        with StepLog(folder / f"{METRICS}.part") as log:
            try:
                forgetful = self._unlearn(
                    codes.w_u,
                    codes.w_target,
                    steps=config.steps,
                    key=jax.random.key(config.seed),
                    on_step=log,
                    keeper=keeper,
                )
            except UnlearningError:
                log.drop()
                raise
        for name in (RESULTS, PICTURE):  # an earlier run's don't belong to what follows
            (folder / name).unlink(missing_ok=True)
        _save_arrays(folder / CODES, codes._asdict())
        about = {
            "config": config.to_dict(),
            "training": training,
            "person": person.title,
            "seconds": round(log.seconds, 1),
        }
        save_network(folder / GENERATOR, forgetful, about=about)

    def _codes(self, person: Person) -> Codes:
        """Inverts the photos, or samples the person that the seed says."""
        generator = self._generator
        tests = np.zeros((0, generator.num_ws, generator.w_dim), np.float32)
        if person.photo:
            w_u = self._invert(person.photo)
            if person.tests:
                tests = np.concatenate([self._invert(path) for path in person.tests])
        else:
            z = data.z_of_seed(person.seed, generator.z_dim)
            w_u = generator.mapping(z, psi=self._config.source.psi)
        settings = self._config.target
        w_avg = generator.mapping.w_avg[...]
        w_target = target.TARGETS[settings.name](w_u, w_avg, settings.distance)
        if not np.isfinite(w_target).all():
            raise InputError(
                "the person's code is the mean w itself, from which no direction leads"
                " away; choose another config.source.seed, or source.psi above 0"
            )
        return Codes(*map(np.asarray, (w_u, w_target, tests)))

    def _invert(self, path: Path) -> np.ndarray:
        photo = data.load_photo(path, self._generator.resolution)
        w = self._encode(photo)
        refine = self._config.source.refine
        if refine.steps:
            w = self._refine(w, photo, refine.steps, refine.learning_rate)
        return np.asarray(w)

    # Measures ------------------------------------------------------------------------

    def _stored(self, person: Person, folder: Path) -> tuple[nnx.Module, Codes]:
        try:
            return load_network(folder / GENERATOR), _load_codes(folder / CODES)
        except (FileNotFoundError, ValueError) as error:
            raise InputError(
                f"of {person.title} no whole result is stored ({error});"
                " run it without --mode=evaluate first"
            ) from error

    def _measure(
        self, person: Person, folder: Path, forgetful: nnx.Module, codes: Codes
    ) -> dict:
        config, evaluator = self._config, self._evaluator
        print(f"measuring {len(self._w_others)} other people before and after")
        kept = evaluator.kept(forgetful, self._w_others, config.evaluate.shown)
        own = self._before_and_after(forgetful, codes.w_u)
        tests = len(codes.tests) and self._before_and_after(forgetful, codes.tests)
        measures = evaluator.compare(kept, own, tests or None)
        values = [value for value in measures.values() if value is not None]
        if not np.isfinite(values).all():
            raise UnlearningError(
                "the generator came out broken, its measures are not finite:"
                f" {measures}; a lower learning rate may help"
            )
        goal = evaluator.look(self._generator, codes.w_target)
        row = {"before": own[0].images[0]}
        results = {"person": person.name, "title": person.title, **measures}
        if person.photo:
            photo = data.load_photo(person.photo, self._generator.resolution)
            results["inversion"] = evaluator.likeness(photo, own[0])
            row = {"photo": photo[0], "reconstruction before": own[0].images[0]}
        row |= {"after": own[1].images[0], "target": goal.images[0]}
        about = read_about(folder / GENERATOR)
        results["ids"] = self._ids(about["training"])
        results["seconds"] = {"training": about["seconds"]}
        results["config"] = json.loads(json.dumps(config.to_dict()))  # of lists
        _save_embeddings(folder / EMBEDDINGS, own, goal)
        report.pictures(folder / PICTURES, row)
        report.before_after(
            folder / PICTURE,
            row,
            kept.shown,
            f"Forgetting {person.title}: {config.steps} steps,"
            f" target {config.target.name!r}",
        )
        report.write_json(folder / RESULTS, results)
        return results

    def _before_and_after(
        self, forgetful: nnx.Module, w: np.ndarray
    ) -> tuple[View, View]:
        look = self._evaluator.look
        return look(self._generator, w), look(forgetful, w)


class StepLog:
    """Writes a line of JSON for each step; steps that a resumed run repeats, once.

    Attributes:
        path: of the file.
        seconds: spent so far, in all runs.
    """

    def __init__(self, path: Path):
        """Reads the lines of a run that was broken off, if there are any."""
        self.path, self.seconds = path, 0.0
        self._earlier = path.read_text().splitlines() if path.exists() else []
        self._file = None

    def __enter__(self) -> "StepLog":
        return self

    def __exit__(self, *_) -> None:
        if self._file:
            self._file.close()

    def __call__(self, step: int, terms: Mapping[str, float]) -> None:
        """Adds a step's line."""
        if self._file is None:
            self._start(step)
        self.seconds = self._offset + time.monotonic() - self._started
        line = {"step": step, **terms, "seconds": round(self.seconds, 2)}
        print(json.dumps(line), file=self._file, flush=True)

    def _start(self, step: int) -> None:
        kept = self._earlier[:step]  # a line for each step, the last one may be cut off
        self._offset = json.loads(kept[-1])["seconds"] if kept else 0.0
        self._file = self.path.open("w")
        self._file.writelines(f"{line}\n" for line in kept)
        self._started = time.monotonic()

    def drop(self) -> None:
        """Removes the file."""
        self.__exit__()
        self.path.unlink(missing_ok=True)


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, hexadecimal.

    Raises:
        InputError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error


def _hash(thing: object) -> str:
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()


def _pair_weights(part: ConfigDict) -> PairWeights:
    return PairWeights(part.mse_weight, part.lpips_weight, part.id_weight, part.weight)


def _prepare(folder: Path) -> None:
    """Makes the folder for the results.

    Raises:
        InputError: it can't be made or written to, or the generator would have no
            place in it.
    """
    try:
        if (folder / GENERATOR).exists():
            read_about(folder / GENERATOR)  # an earlier run's, to be replaced
        for name in (METRICS, RESULTS, PICTURE, CODES):
            if (folder / name).is_dir():
                raise IsADirectoryError(f"{name} is a folder there")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{METRICS}.part").touch()
    except (OSError, ValueError) as error:
        raise InputError(f"no results can go to {folder} ({error})") from error


def _read_results(folder: Path) -> dict | None:
    """Returns a person's results; None if they aren't there or not whole."""
    try:
        results = json.loads((folder / RESULTS).read_text())
        return results if "ids" in results and (folder / PICTURE).exists() else None
    except (OSError, ValueError):
        return None


def _trained(folder: Path) -> str | None:
    """Returns what training made the generator in a folder; None if there is none."""
    try:
        about = read_about(folder / GENERATOR)
        return about.get("training") if (folder / CODES).exists() else None
    except (OSError, ValueError):
        return None


def _settle(folder: Path) -> None:
    """Ends a training whose generator is stored: its steps are final."""
    part = folder / f"{METRICS}.part"
    if part.exists():
        part.replace(folder / METRICS)
    Keeper(folder / CHECKPOINT, "", 0).drop()


def _save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    part.replace(path)


def _save_embeddings(path: Path, own: tuple[View, View], goal: View) -> None:
    """Stores what the first judge made of the person before, after, and the target."""
    first = next(iter(goal.faces))
    views = {"before": own[0], "after": own[1], "target": goal}
    faces = {name: view.faces[first] for name, view in views.items()}
    _save_arrays(
        path,
        {name: seen.embeddings[0] for name, seen in faces.items() if seen.found[0]},
    )


def _load_codes(path: Path) -> Codes:
    with path.open("rb") as file, np.load(file) as archive:
        return Codes(*(archive[name] for name in Codes._fields))
