"""Measures stored unlearned generators, and writes each person's results."""

import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from guide_jax.config_types import Config
from guide_jax.console import Console
from guide_jax.errors import InputError, UnlearningError
from guide_jax.latents import Found, LatentFinder, Photos
from guide_jax.metrics import judges
from guide_jax.metrics.calibration import Calibration, calibration_of
from guide_jax.metrics.doubts import find_doubts
from guide_jax.metrics.evaluator import Evaluator, Judged, Kept
from guide_jax.metrics.fid import FidMeasure
from guide_jax.metrics.judges import Judge
from guide_jax.models.dlib_resnet import DlibResNet
from guide_jax.models.generator import Generator
from guide_jax.people import Person
from guide_jax.reports import pictures
from guide_jax.reports.summary import Done, summarise
from guide_jax.storage import fingerprint
from guide_jax.storage.locate import Networks
from guide_jax.storage.run_folder import (
    PICTURE,
    PICTURES,
    SIDES,
    WORST,
    PersonFolder,
    Stored,
    TrainingRecord,
)
from guide_jax.training.sharding import DeviceGroup

MAIN_JUDGE = "judge"  # the judge from config.networks.judge


class EvaluateJob:
    """`--mode=evaluate`: measures stored results again.

    Attributes:
        latents: computes people's codes.
        judges: name -> judge; the first gives the main measures.
        calibrations: of those judges whose error rates on real photos are known.
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
        self.latents = latents or LatentFinder(config, networks, self._console)
        settings = config.evaluate
        self._external = judges.chosen(settings.external, settings.external_folder)
        self.judges = self._make_judges()
        self.calibrations = {
            name: calibration
            for name in self.judges
            if (calibration := calibration_of(name, self._network_of(name)))
        }
        self._evaluator = Evaluator(
            self._generator,
            networks["lpips"],
            self.judges,
            settings.batch,
            random_noise=config.training.compat,
        )
        self._fid = None
        if settings.fid_samples:
            self._fid = FidMeasure(
                networks,
                settings,
                psi=config.source.psi,
                cache=config.cache,
                random_noise=config.training.compat,
                console=self._console,
            )
        made_of = self._fid.made_of if self._fid else None
        files = judges.files_of(self._external, settings.external_folder)
        self._measures = fingerprint.of_measures(
            config, networks.hashes, files, made_of
        )
        self._judge_files = {path.name: fingerprint.of_file(path) for path in files}
        if made_of:
            self._judge_files["FID"] = made_of
        self._w_others = self.latents.random(settings.seed, settings.others)

    def _make_judges(self) -> dict[str, Judge]:
        settings, judge = self._config.evaluate, self._networks["judge"]
        if settings.align == "mtcnn":
            if isinstance(judge, DlibResNet):
                raise InputError(
                    "config.evaluate.align is 'mtcnn', but dlib's network takes another"
                    " crop; use 'crop', or the judge 'dlib' of config.evaluate.external"
                )
            detector = self._networks["detector"]
            first = judges.aligning_judge(judge, detector, settings.batch)
        else:
            first = judges.cropping_judge(judge, settings.batch)
        folder = settings.external_folder
        further = {name: judges.external_judge(name, folder) for name in self._external}
        return {MAIN_JUDGE: first} | further

    def _network_of(self, judge: str) -> Any:
        """Returns a judge's network, or None if the judge is external."""
        return self._networks["judge"] if judge == MAIN_JUDGE else None

    def _first_calibrated(self) -> tuple[str, Calibration] | None:
        return next(iter(self.calibrations.items()), None)

    def images(self, w: np.ndarray) -> np.ndarray:
        """Returns the original generator's images of codes `[N, L, D]`."""
        return self._evaluator.images(self._generator, w)

    def doubts(self, found: Found) -> list[str]:
        """Returns why a person's photos may show, or give, somebody else.

        It relies on the first judge whose error rates on real photos are known; without
        one, there is nothing to say.
        """
        calibrated = self._first_calibrated()
        if not found.photos.paths or calibrated is None:
            return []
        name, calibration = calibrated
        photos, tests = found.photos, found.tests
        judge, w_own = self.judges[name], found.codes.w_u[: len(photos.paths)]
        return find_doubts(
            (*photos.paths, *tests.paths),
            judge(np.concatenate([photos.images, tests.images])),
            judge(self.images(w_own)),
            calibration,
            self._describe(name),
        )

    def _error_rates(self) -> dict[str, str]:
        """Returns what is known about each judge's error rates on real photos."""
        known = self.calibrations
        return {
            self._describe(x): known[x].describe() if x in known else "not measured"
            for x in self.judges
        }

    def _describe(self, judge: str) -> str:
        network = self._network_of(judge)
        return network.kind if network else judge

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

    def done(self, person: Person, folder: PersonFolder) -> dict[str, Any] | None:
        """Returns the entry of a person whose measures are up to date, otherwise None.

        Raises:
            InputError: the result belongs to another person.
        """
        entry, record = folder.results(), folder.record()
        if not entry or not record or not self.is_current(entry, record.training):
            return None
        self.check_person(person, folder, record)
        return entry

    def close(self) -> None:
        """Does nothing, because there are no other processes."""

    def who(self, person: Person) -> str:
        """Returns the hash of a person."""
        return fingerprint.of_person(person, self._config.source, self._networks.hashes)

    def is_current(self, entry: Mapping[str, Any], training: str) -> bool:
        """Returns whether an entry of results.json has a training's measures."""
        wanted = self.ids(training)
        return wanted == {name: entry["ids"].get(name) for name in wanted}

    def ids(self, training: str) -> dict[str, str]:
        """Returns the hashes that a training's up-to-date results contain."""
        return {"training": training, "measures": self._measures}

    def measure(
        self,
        person: Person,
        who: str,
        folder: PersonFolder,
        stored: Stored,
        found: Found | None = None,
    ) -> dict[str, Any]:
        """Measures a stored generator and writes results and pictures to its folder.

        Args:
            person: the person who was forgotten.
            who: the person's hash, from `who`.
            folder: the person's folder.
            stored: its contents.
            found: the person's photos; read from their files by default.

        Returns and raises the same as `__call__`.
        """
        unlearned, codes, record = stored
        config, evaluator = self._config, self._evaluator
        self.check_person(person, folder, record, who)
        folder.invalidate()
        self._console.say(
            f"measuring {len(self._w_others)} other people before and after"
        )
        kept = evaluator.kept(unlearned, self._w_others, config.evaluate.shown)
        own, tests = self.photos(person, record.photos, found)
        w_own = codes.w_u[: record.photos]
        before = evaluator.judged(self._generator, w_own)
        after = evaluator.judged(unlearned, w_own)
        target_images = self.images(codes.w_target[:1])
        target = Judged(target_images, evaluator.judge(target_images))
        further, test_rows = {}, []
        if own:
            further["id_photo"] = own.faces, after.faces
        if tests:
            tests_before = evaluator.judged(self._generator, codes.tests)
            tests_after = evaluator.judged(unlearned, codes.tests)
            further["id_others"] = tests_before.views, tests_after.views
            further["id_photo_others"] = tests.faces, tests_after.faces
            test_rows = list(
                zip(tests.images, tests_before.images, tests_after.images, strict=True)
            )
        compared = evaluator.compare(kept, (before, after), further)
        to_target = evaluator.lpips(after.images[:1], target.images)
        compared["measures"]["lpips_target"] = float(to_target[0])
        if self._fid:
            compared["measures"] |= self._fid(unlearned)
        _check_finite(compared["measures"], *compared["judges"].values())
        entry = {"person": person.name, "title": person.title, **compared}
        notes = [f"left out: {line}" for line in record.skipped]
        row = {"before": before.images[0]}
        if own:
            entry["inversion"] = self._inversion(own, before, w_own)
            notes += self._low_similarity(entry, compared["measures"]["id_strangers"])
            row = {"photo": own.images[0], "reconstruction before": before.images[0]}
        row |= {"after": after.images[0], "target": target.images[0]}
        for note in notes:
            self._console.say(f"note: {note}")
        entry["notes"] = notes
        worst, entry["worst_others"] = self._worst(kept)
        entry["calibration"] = self._error_rates()
        entry["ids"] = self.ids(record.training)
        entry["inputs"] = self._inputs(person)
        entry["trained_with"] = record.versions
        entry["seconds"] = {"training": record.seconds}
        if attacks := folder.attacks(record.training):
            add_verdict(entry, attacks)
        # The stored training's settings, with the current settings of the measures.
        settings = record.config | {"evaluate": config.fields["evaluate"]}
        pictures.save_images(folder.path / PICTURES, row, test_rows)
        self._save_worst(folder, unlearned, worst)
        pictures.before_after(
            folder.path / PICTURE,
            row,
            test_rows,
            kept.shown,
            f"Forgetting {person.title}: {method_of(settings)}",
            _save_sides(folder, before, after),
        )
        judged = {"before": before, "after": after, "target": target}
        faces = {name: each.faces[MAIN_JUDGE] for name, each in judged.items()}
        embeddings = {
            name: each.embeddings[0] for name, each in faces.items() if each.found[0]
        }
        floor = np.float32(faces["target"].floor)
        folder.save_embeddings(embeddings | {"floor": floor})
        folder.save_results(summarise([Done(entry, folder.path)], [], settings))
        return entry

    def _inputs(self, person: Person) -> dict[str, Any]:
        """Returns the hashes of the files that a person's results depend on."""
        networks = self._networks
        return {
            "networks": {
                role: {**networks.files.get(role, {}), "weights": digest}
                for role, digest in networks.hashes.items()
            },
            "photos": fingerprint.of_photos((*person.photos, *person.tests)),
            "judges": dict(self._judge_files),
        }

    def _worst(self, kept: Kept) -> tuple[np.ndarray, list[float | None]]:
        """Returns the indices and similarities of the least kept people."""
        before, after = kept.before[MAIN_JUDGE], kept.after[MAIN_JUDGE]
        values = judges.paired(before, after)
        # NaN comes last: without a face there is no similarity.
        order = np.argsort(values)[: self._config.evaluate.shown]
        return order, [None if np.isnan(x) else float(x) for x in values[order]]

    def _save_worst(
        self, folder: PersonFolder, unlearned: Generator, rows: np.ndarray
    ) -> None:
        """Writes the images of other people, before and after."""
        if not len(rows):
            return
        before, after = (
            self._evaluator.images(generator, self._w_others[rows])
            for generator in (self._generator, unlearned)
        )
        pictures.save_pairs(folder.path / PICTURES / WORST, before, after)

    def check_person(
        self,
        person: Person,
        folder: PersonFolder,
        record: TrainingRecord,
        who: str | None = None,
    ) -> None:
        """Raises InputError if a stored result is not this person's.

        Args:
            person: the person.
            folder: the folder that holds the result.
            record: the result's.
            who: the person's hash, if it is known already.
        """
        original = self._networks.hashes["generator"]
        if record.who != (who or self.who(person)) or record.generator != original:
            raise InputError(
                f"{folder.path}: holds the result of {record.person}, which is not"
                f" {person.title} with these settings and this generator"
            )

    def photos(
        self, person: Person, count: int, found: Found | None
    ) -> tuple[Judged | None, Judged | None]:
        """Returns the person's photos and test photos, judged; None if there are none.

        Raises:
            InputError: other photos can be read than when the person was forgotten.
        """
        if not person.photos:
            return None, None
        if found:
            photos, tests = found.photos, found.tests
        else:
            photos, tests = (
                self.latents.read(paths)[0] for paths in (person.photos, person.tests)
            )
        if len(photos.paths) != count:
            raise InputError(
                f"{person.title}: {len(photos.paths)} photos can be read, but {count}"
                " were used when the person was forgotten; run --mode=unlearn again"
            )

        def judged(part: Photos) -> Judged | None:
            if not part.paths:
                return None
            return Judged(part.images, self._evaluator.judge(part.images))

        return judged(photos), judged(tests)

    def _inversion(
        self, photos: Judged, before: Judged, w: np.ndarray
    ) -> dict[str, Any]:
        inversion = self._evaluator.inversion(photos, before)
        assert self.latents.prior is not None  # photos need an encoder
        inversion["from_mean"] = float(self.latents.prior.distance(w).mean())
        numbers = {name: x for name, x in inversion.items() if name != "judges"}
        _check_finite(numbers, *inversion["judges"].values())
        return inversion

    def _low_similarity(
        self, entry: Mapping[str, Any], strangers: float | None
    ) -> list[str]:
        """Returns a note if the photo's reconstruction hardly resembles the person."""
        own, known = entry["inversion"]["id"], ""
        if calibrated := self._first_calibrated():
            name, calibration = calibrated
            threshold, known = calibration.threshold, calibration.describe()
            if name != MAIN_JUDGE:
                own = entry["inversion"]["judges"][name]["id"]
        elif strangers is not None:
            threshold = (1 + strangers) / 2
            known = f"two strangers: {strangers:.2f}"
        if own is None or not known or own > threshold:
            return []
        return [
            f"identity similarity between photo and reconstruction is only {own:.2f}"
            f" ({known}), so the wrong person may be forgotten; see config.source.align"
            " and config.source.refine"
        ]


def _save_sides(
    folder: PersonFolder, before: Judged, after: Judged
) -> dict[str, np.ndarray]:
    """Writes a 3D person's images from all sides, and returns them by their labels."""
    place = folder.path / PICTURES / SIDES
    if before.sides is None or after.sides is None:
        shutil.rmtree(place, ignore_errors=True)  # an earlier, 3D generator's
        return {}
    pictures.save_pairs(place, before.sides, after.sides)
    return {"before": before.sides, "after": after.sides}


def add_verdict(entry: dict[str, Any], attacks: Mapping[str, Any]) -> None:
    """Adds the verdict of stored attacks to an entry of results.json."""
    entry["verdict"] = attacks["verdict"]
    entry["measures"] = {"level": attacks["verdict"]["level"], **entry["measures"]}
    entry["ids"] = entry["ids"] | {"attacks": attacks["made_of"]}
    if "inputs" in entry:  # not in results of earlier versions
        entry["inputs"] = entry["inputs"] | {"attacks": attacks.get("inputs", {})}


def method_of(settings: Mapping[str, Any]) -> str:
    """Names a training's steps and method; results of 0.1.0 don't state the method."""
    steps = f"{settings['steps']} steps"
    if settings.get("method", "guide") == "guide":
        return f"{steps}, target {settings['target']['name']!r}"
    if settings["method"] == "erase":
        return "method 'erase'"
    return f"{steps}, method {settings['method']!r}"


def _check_finite(*measures: Mapping[str, float | int | None]) -> None:
    for found in measures:
        values = [value for value in found.values() if value is not None]
        if not np.isfinite(values).all():
            raise UnlearningError(
                f"the unlearned generator's measures are not finite: {dict(found)}; try"
                " a lower config.optimizer.learning_rate"
            )
