"""Measures stored unlearned generators, and writes each person's results."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from guide_jax.config_types import Config
from guide_jax.console import Console
from guide_jax.errors import InputError, UnlearningError
from guide_jax.latents import LatentFinder
from guide_jax.metrics import judges
from guide_jax.metrics.evaluator import Evaluator
from guide_jax.metrics.fid import FidMeasure
from guide_jax.metrics.judges import Judge
from guide_jax.people import Person
from guide_jax.reports import pictures
from guide_jax.reports.summary import Done, summarise
from guide_jax.storage import fingerprint
from guide_jax.storage.locate import Networks
from guide_jax.storage.run_folder import PICTURE, PICTURES, PersonFolder, Stored
from guide_jax.training.sharding import DeviceGroup

MAIN_JUDGE = "judge"  # the judge from config.networks.judge


class EvaluateJob:
    """`--mode=evaluate`: measures stored results again.

    Attributes:
        latents: computes people's codes.
    """

    def __init__(
        self,
        config: Config,
        networks: Networks,
        devices: DeviceGroup | None = None,
        console: Console | None = None,
        latents: LatentFinder | None = None,
    ):
        """Prepares the judges and the other people.

        Args:
            config: the run's settings.
            networks: the run's networks.
            devices: unused, because measures need only one device.
            console: prints lines and progress bars.
            latents: finds people's codes; made here by default.
        """
        del devices
        self._config, self._networks = config, networks
        self._console = console or Console()
        self._generator = networks["generator"]
        self._latents = latents or LatentFinder(config, networks, self._console)
        settings = config.evaluate
        self._evaluator = Evaluator(
            self._generator, networks["lpips"], self._judges(), settings.batch
        )
        self._fid = None
        if settings.fid_samples:
            self._fid = FidMeasure(
                networks,
                settings,
                psi=config.source.psi,
                cache=config.cache,
                console=self._console,
            )
        made_of = self._fid.made_of if self._fid else None
        files = judges.files_of(settings.external, settings.external_folder)
        self._measures = fingerprint.of_measures(
            config, networks.hashes, files, made_of
        )
        self._w_others = self._latents.random(settings.seed, settings.others)

    def _judges(self) -> dict[str, Judge]:
        settings, judge = self._config.evaluate, self._networks["judge"]
        if settings.align == "mtcnn":
            detector = self._networks["detector"]
            first = judges.aligning_judge(judge, detector, settings.batch)
        else:
            first = judges.cropping_judge(judge, settings.batch)
        folder = settings.external_folder
        further = {
            name: judges.external_judge(name, folder) for name in settings.external
        }
        return {MAIN_JUDGE: first} | further

    def __call__(self, person: Person, folder: PersonFolder) -> dict[str, Any]:
        """Measures the generator that is stored in a person's folder.

        Returns:
            The person's entry in results.json.

        Raises:
            InputError: no result is stored, or it belongs to another person.
            UnlearningError: a measure is not finite.
        """
        who = self.who(person)
        return self.measure(person, who, folder, folder.load())

    def close(self) -> None:
        """Does nothing, because there are no other processes."""

    def who(self, person: Person) -> str:
        """Returns the hash of a person."""
        return fingerprint.of_person(person, self._config.source, self._networks.hashes)

    def ids(self, training: str) -> dict[str, str]:
        """Returns the hashes that a training's up-to-date results contain."""
        return {"training": training, "measures": self._measures}

    def measure(
        self,
        person: Person,
        who: str,
        folder: PersonFolder,
        stored: Stored,
        photo: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Measures a stored generator and writes results and pictures to its folder.

        Args:
            person: the person who was forgotten.
            who: the person's hash, from `who`.
            folder: the person's folder.
            stored: its contents.
            photo: the person's aligned photo; read from its file by default.

        Returns and raises the same as `__call__`.
        """
        unlearned, codes, record = stored
        config, evaluator = self._config, self._evaluator
        original = self._networks.hashes["generator"]
        if record.who != who or record.generator != original:
            raise InputError(
                f"{folder.path}: holds the result of {record.person}, which is not"
                f" {person.title} with these settings and this generator"
            )
        folder.invalidate()
        self._console.say(
            f"measuring {len(self._w_others)} other people before and after"
        )
        kept = evaluator.kept(unlearned, self._w_others, config.evaluate.shown)
        before = evaluator.judged(self._generator, codes.w_u)
        after = evaluator.judged(unlearned, codes.w_u)
        tests = None
        if len(codes.tests):
            tests = (
                evaluator.faces(self._generator, codes.tests),
                evaluator.faces(unlearned, codes.tests),
            )
        found = evaluator.compare(kept, (before, after), tests)
        if self._fid:
            found["measures"] |= self._fid(unlearned)
        _check_finite(found["measures"], *found["judges"].values())
        target = evaluator.judged(self._generator, codes.w_target)
        entry = {"person": person.name, "title": person.title, **found}
        notes = [f"left out: {line}" for line in record.skipped]
        row = {"before": before.images[0]}
        if person.photo:
            if photo is None:
                photo, _ = self._latents.photo(person.photo)
            entry["inversion"] = evaluator.inversion(photo, before)
            _check_finite(entry["inversion"])
            notes += _low_similarity(
                entry["inversion"]["id"], found["measures"]["id_strangers"]
            )
            row = {"photo": photo[0], "reconstruction before": before.images[0]}
        row |= {"after": after.images[0], "target": target.images[0]}
        for note in notes:
            self._console.say(f"note: {note}")
        entry["notes"] = notes
        entry["ids"] = self.ids(record.training)
        entry["seconds"] = {"training": record.seconds}
        # The stored training's settings, with the current settings of the measures.
        settings = record.config | {"evaluate": config.fields["evaluate"]}
        pictures.save_images(folder.path / PICTURES, row)
        pictures.before_after(
            folder.path / PICTURE,
            row,
            kept.shown,
            f"Forgetting {person.title}: {settings['steps']} steps,"
            f" target {settings['target']['name']!r}",
        )
        judged = {"before": before, "after": after, "target": target}
        faces = {name: each.faces[MAIN_JUDGE] for name, each in judged.items()}
        embeddings = {
            name: each.embeddings[0] for name, each in faces.items() if each.found[0]
        }
        folder.save_embeddings(embeddings)
        folder.save_results(summarise([Done(entry, folder.path)], [], settings))
        return entry


def _low_similarity(own: float | None, strangers: float | None) -> list[str]:
    """Returns a note if the photo's reconstruction hardly resembles the person."""
    if own is None or strangers is None or own > (1 + strangers) / 2:
        return []
    return [
        f"identity similarity between photo and reconstruction is only {own:.2f}"
        f" (two strangers: {strangers:.2f}), so the wrong person may be forgotten; see"
        " config.source.align and config.source.refine"
    ]


def _check_finite(*measures: Mapping[str, float | int | None]) -> None:
    for found in measures:
        values = [value for value in found.values() if value is not None]
        if not np.isfinite(values).all():
            raise UnlearningError(
                f"the unlearned generator's measures are not finite: {dict(found)}; try"
                " a lower config.optimizer.learning_rate"
            )
