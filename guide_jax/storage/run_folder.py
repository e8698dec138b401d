"""Names, writes and reads the files in a run's folder and in a person's folder."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from guide_jax.errors import InputError, is_about_a_file
from guide_jax.latents import Codes
from guide_jax.models.generator import Generator
from guide_jax.storage.atomic import (
    check_writable,
    write_arrays,
    write_json,
)
from guide_jax.storage.network_file import load_network, read_about, save_network
from guide_jax.storage.origin import Origin, in_words
from guide_jax.storage.step_log import StepLog
from guide_jax.training.checkpoint import TrainStateStore

# Files of a run.
TABLE, PAGE, PEOPLE = "results.csv", "report.html", "people"
FAULTS = ".faults_{}.json"  # who failed in which process, while several run
# Files of a person. If a run has only one person, both share the run's folder.
METRICS, RESULTS, PICTURE = "metrics.jsonl", "results.json", "before_after.png"
CODES, EMBEDDINGS, ATTACKS = "codes.npz", "embeddings.npz", "attacks.json"
GENERATOR, PICTURES, TRAIN_STATE = "generator", "pictures", ".checkpoint"
RENDER = "render"
# In PICTURES: the least kept people; a 3D person from all sides.
WORST, SIDES = "others", "sides"


@dataclass(frozen=True)
class TrainingRecord:
    """Information about a training, stored with the unlearned generator.

    Attributes:
        config: all fields of the run's config, nested.
        training: hash of settings, person and networks, from `fingerprint.of_training`.
        person: the person's title.
        who: hash of the person, from `fingerprint.of_person`.
        generator: hash of the original generator.
        skipped: a line for each photo that could not be used.
        seconds: training time in seconds.
        photos: how many of the codes are those of photos, the first ones.
        tests: names of the test photos that were used.
        networks: role -> hash of the network.
        versions: of packages, Python and this code.
    """

    config: dict[str, Any]
    training: str
    person: str
    who: str
    generator: str
    skipped: list[str]
    seconds: float
    photos: int = 1  # not in records of 0.1.0
    tests: list[str] = dataclasses.field(default_factory=list)
    networks: dict[str, str] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TrainingRecord":
        """Reads a record; raises TypeError if a field is missing."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: data[name] for name in names & data.keys()})

    @property
    def origin(self) -> Origin:
        """What the training was made from."""
        networks = {"generator": self.generator} | self.networks
        return Origin(self.config, self.person, self.who, networks, self.versions)


class Stored(NamedTuple):
    """The stored result of a training.

    Attributes:
        generator: the unlearned generator.
        codes: the person's codes.
        record: information about the training.
    """

    generator: Generator
    codes: Codes
    record: TrainingRecord


class PersonFolder:
    """The folder of one person's results.

    Attributes:
        path: path of the folder.
    """

    def __init__(self, path: Path):
        """Sets the path; nothing is read or written yet."""
        self.path = path

    def prepare(self) -> None:
        """Creates the folder.

        Raises:
            InputError: the folder cannot be created or written to, or something other
                than a result has a result's name.
        """
        try:
            if (self.path / GENERATOR).exists():
                read_about(self.path / GENERATOR)  # raises unless it may be replaced
            for name in (METRICS, RESULTS, PICTURE, CODES):
                if (self.path / name).is_dir():
                    raise IsADirectoryError(f"{name} is a folder there")
            check_writable(self.path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot write results to {self.path} ({error})"
            ) from error

    def check_replaceable(self, training: str, now: Origin) -> None:
        """Checks that a training takes nothing away that others have left here.

        Args:
            training: the training's hash.
            now: what it is made from.

        Raises:
            InputError: the folder holds the result of another training, or a checkpoint
                that the training would replace. The message says what differs.
        """
        cure = "choose another --workdir, or replace it with --config.overwrite=True"
        record = self.record()
        if record and record.training != training:
            raise InputError(
                f"{self.path} holds the result of {record.person} with other settings"
                f" ({in_words(record.origin.differences(now))}); {cure}"
            )
        found = self.train_state("", 0).found()
        if found is None or self._continues(training, now):
            return
        belongs_to, origin = found
        there = Origin.from_json(origin) if origin else None
        if belongs_to != training:
            what, differences = "with other settings", []
            if there:
                differences = there.differences(now)
        else:
            what = "of another version, with which it would not end in the same numbers"
            differences = there.other_versions(now) if there else []
        raise InputError(
            f"{self.path} holds the checkpoint of an interrupted training {what}"
            f" ({in_words(differences)}); finish that one, {cure}"
        )

    def drop_others(self, training: str, now: Origin) -> None:
        """Removes the checkpoint of a training that `now` does not continue."""
        if not self._continues(training, now):
            self.train_state("", 0).drop()

    def _continues(self, training: str, now: Origin) -> bool:
        """Returns whether a training may resume from the stored checkpoint."""
        found = self.train_state("", 0).found()
        if found is None:
            return False
        belongs_to, origin = found
        # Checkpoints of 0.1.0 don't say what they are made from.
        same_versions = not origin or not Origin.from_json(origin).other_versions(now)
        return belongs_to == training and same_versions

    def record(self) -> TrainingRecord | None:
        """Returns the record of the stored generator, or None."""
        try:
            return TrainingRecord.from_json(read_about(self.path / GENERATOR))
        except (OSError, TypeError, ValueError):
            return None

    # While training ------------------------------------------------------------------

    def train_state(
        self, training: str, every: int, origin: Origin | None = None
    ) -> TrainStateStore:
        """Returns the checkpoint store for a training, given its hash and origin."""
        made_from = origin.as_json() if origin else None
        return TrainStateStore(self.path / TRAIN_STATE, training, every, made_from)

    def step_log(self, training: str) -> StepLog:
        """Returns the step log for a training, given its hash."""
        return StepLog(self._log_path(training))

    def finish(
        self, generator: Generator, codes: Codes, record: TrainingRecord
    ) -> None:
        """Stores the result of a training; from then on `stored` returns it."""
        for name in (RESULTS, PICTURE, ATTACKS):  # from an earlier training
            (self.path / name).unlink(missing_ok=True)
        training = np.array(record.training)
        write_arrays(self.path / CODES, codes._asdict() | {"training": training})
        about = dataclasses.asdict(record)
        save_network(self.path / GENERATOR, generator, about=about)

    def stored(self, training: str) -> Stored | None:
        """Returns a training's result, given its hash; None if absent or incomplete."""
        try:
            stored = self.load()
        except InputError:
            return None
        return stored if stored.record.training == training else None

    def clean_up(self, training: str) -> None:
        """Moves a stored training's log into place and removes temporary files."""
        log = self._log_path(training)
        if log.exists():
            log.replace(self.path / METRICS)
        # Left by programs that were killed.
        for path in self.path.glob(f".{GENERATOR}.*"):
            shutil.rmtree(path)
        found = self.train_state("", 0).found()
        if found and found[0] != training:
            return  # another training may still resume
        for path in self.path.glob(f".{METRICS}.*.part"):
            path.unlink()
        self.train_state("", 0).drop()

    def _log_path(self, training: str) -> Path:
        return self.path / f".{METRICS}.{training[:16]}.part"

    # Afterwards ----------------------------------------------------------------------

    def load(self) -> Stored:
        """Returns the stored result, whichever training it is from.

        Raises:
            InputError: files are missing or incomplete.
        """
        try:
            generator = load_network(self.path / GENERATOR)
            with (self.path / CODES).open("rb") as file, np.load(file) as archive:
                codes = Codes(*(archive[name] for name in Codes._fields))
                training = str(archive["training"])
            record = TrainingRecord.from_json(read_about(self.path / GENERATOR))
            if record.training != training:
                raise ValueError(
                    f"{CODES} is from a different training than {GENERATOR}"
                )
            return Stored(generator, codes, record)
        # zipfile and numpy raise any exception for damaged archives.
        except Exception as error:
            if not is_about_a_file(error):
                raise
            raise InputError(
                f"{self.path}: no complete result is stored there ({error}); run"
                " --mode=unlearn first"
            ) from error

    def results(self) -> dict[str, Any] | None:
        """Returns the person's entry in results.json.

        None if files are missing or damaged, or if they belong to different trainings:
        a run with several people leaves a results.json that is not about the person
        whom an earlier run forgot into the same folder.
        """
        try:
            entry = json.loads((self.path / RESULTS).read_text())["people"][0]
            with (self.path / CODES).open("rb") as file, np.load(file) as archive:
                same = str(archive["training"]) == entry["ids"]["training"]
            complete = all((self.path / x).exists() for x in (PICTURE, EMBEDDINGS))
            return entry if same and complete else None
        # json, zipfile and numpy raise many exceptions for damaged or foreign files.
        except Exception:
            return None

    def invalidate(self) -> None:
        """Removes results.json, because the files it describes are about to change."""
        (self.path / RESULTS).unlink(missing_ok=True)

    def save_attacks(self, attacks: Mapping[str, Any]) -> None:
        """Writes what attacks reached; see `attacks.battery.Attacker`."""
        write_json(self.path / ATTACKS, attacks)

    def attacks(self, training: str) -> dict[str, Any] | None:
        """Returns what attacks on a training's result reached; None if unknown."""
        try:
            attacks = json.loads((self.path / ATTACKS).read_text())
            return attacks if attacks["training"] == training else None
        # json raises many exceptions for damaged or foreign files.
        except Exception:
            return None

    def save_embeddings(self, embeddings: Mapping[str, np.ndarray]) -> None:
        """Writes the judge's embeddings, name -> `[E]`."""
        write_arrays(self.path / EMBEDDINGS, embeddings)

    def save_results(self, results: Mapping[str, Any]) -> None:
        """Writes results.json; must come last, because it marks results as complete."""
        write_json(self.path / RESULTS, results)
