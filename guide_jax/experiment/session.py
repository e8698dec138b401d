"""All people of a run, one by one, with networks loaded and programs compiled once."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from guide_jax.errors import InputError, UnlearningError
from guide_jax.experiment import from_config
from guide_jax.latents import Coder
from guide_jax.metrics import external, identity
from guide_jax.metrics.evaluator import Evaluator, View
from guide_jax.metrics.fid import FidMeasure
from guide_jax.people import Person
from guide_jax.reports import report
from guide_jax.storage import fingerprint
from guide_jax.storage.network_file import network_hash
from guide_jax.storage.run_folder import PICTURE, PICTURES, PersonFolder, Stored
from guide_jax.training.sharding import Team


class Session:
    """The networks of a run, and what is done with them for each person."""

    def __init__(
        self,
        config: ConfigDict,
        networks: dict[str, nnx.Module],
        *,
        team: Team | None = None,
        line: int | None = None,
        say: Callable[[str], None] = print,
    ):
        """Prepares the training and the measures.

        Args:
            config: as `configs/default.py` describes it.
            networks: from `load_networks`.
            team: the devices that share each step; by default JAX's first one.
            line: of the terminal, for progress bars, where other sessions have some.
            say: prints a line.
        """
        self._config, self._networks, self._say = config, networks, say
        self._generator = networks["generator"]
        self._hashes = {role: network_hash(net) for role, net in networks.items()}
        self._unlearn = from_config.unlearner(config, networks, team, line, say)
        self._coder = Coder(config, networks, line, say)
        self._evaluator = Evaluator(
            self._generator, networks["lpips"], self._judges(), config.evaluate.batch
        )
        self._fid = self._fid_measure(line) if config.evaluate.fid_samples else None
        self._measures = fingerprint.of(
            [
                config.evaluate.to_dict(),
                config.source.psi,
                self._hashes,
                [fingerprint.of_file(path) for path in self._outside_files()],
                self._fid and self._fid.made_of,
            ]
        )
        settings = config.evaluate
        self._w_others = self._coder.drawn(settings.seed, settings.others)

    def _judges(self) -> dict[str, identity.Judge]:
        settings, judge = self._config.evaluate, self._networks["judge"]
        if settings.align == "mtcnn":
            first = identity.aligning(judge, self._networks["detector"], settings.batch)
        else:
            first = identity.cropping(judge, settings.batch)
        folder = Path(settings.outside_folder)
        others = {name: external.judge(name, folder) for name in settings.outside}
        return {"": first} | others

    def _outside_files(self) -> list[Path]:
        settings = self._config.evaluate
        folder = Path(settings.outside_folder)
        return [
            folder / file
            for name in settings.outside
            for file in external.ENCODERS[name].files
        ]

    def _fid_measure(self, line: int | None) -> FidMeasure:
        settings = self._config.evaluate
        return FidMeasure(
            self._generator,
            self._networks["inception"],
            samples=settings.fid_samples,
            psi=self._config.source.psi,
            seed=settings.seed,
            batch=settings.batch,
            real=settings.fid_real,
            cache=Path(self._config.cache),
            line=line,
        )

    def person(
        self, person: Person, folder: PersonFolder, mode: str = "unlearn"
    ) -> dict:
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
        who = fingerprint.of_person(person, self._config.source, self._hashes)
        if mode == "evaluate":
            return self._measure(person, who, folder, folder.load())
        training = fingerprint.of_training(self._config, who, self._hashes)
        results = folder.results()
        if results and results["ids"] == self._ids(training):
            self._say(
                f"{person.title} is done already, with these settings: {folder.path}"
            )
            return results
        stored = folder.stored(training)
        if stored is None:
            self._train(person, who, folder, training)
            stored = folder.load()
        folder.settle(training)
        return self._measure(person, who, folder, stored)

    def dismiss(self) -> None:
        """Lets the other processes' `follow` end."""
        self._unlearn.dismiss()

    def _ids(self, training: str) -> dict[str, str]:
        return {"training": training, "measures": self._measures}

    # Training ------------------------------------------------------------------------

    def _train(
        self, person: Person, who: str, folder: PersonFolder, training: str
    ) -> None:
        codes, skipped = self._coder(person)
        folder.prepare()
        config = self._config
        self._say(
            f"forgetting {person.title} ({config.name}, {self._generator.resolution}"
            f" px, {config.steps} steps, target {config.target.name!r});"
            f" results go to {folder.path}"
        )
        with folder.log(training) as log:
            try:
                forgetful = self._unlearn(
                    codes.w_u,
                    codes.w_target,
                    steps=config.steps,
                    key=jax.random.key(config.seed),
                    on_step=log,
                    keeper=folder.keeper(training, config.save_every),
                )
            except UnlearningError:
                log.drop()
                raise
        about = {
            "config": config.to_dict(),
            "training": training,
            "person": person.title,
            "who": who,
            "generator": self._hashes["generator"],
            "skipped": skipped,
            "seconds": round(log.seconds, 1),
        }
        folder.finish(forgetful, codes, about)

    # Measures ------------------------------------------------------------------------

    def _measure(
        self, person: Person, who: str, folder: PersonFolder, stored: Stored
    ) -> dict:
        forgetful, codes, about = stored
        if about["who"] != who or about["generator"] != self._hashes["generator"]:
            raise InputError(
                f"{folder.path}: holds how {about['person']} was forgotten; that is not"
                f" {person.title} with these settings and this generator"
            )
        folder.invalidate()
        config, evaluator = self._config, self._evaluator
        self._say(f"measuring {len(self._w_others)} other people before and after")
        kept = evaluator.kept(forgetful, self._w_others, config.evaluate.shown)
        own = self._before_and_after(forgetful, codes.w_u)
        tests = None
        if len(codes.tests):
            tests = tuple(
                evaluator.faces(generator, codes.tests)
                for generator in (self._generator, forgetful)
            )
        measures = evaluator.compare(kept, own, tests)
        if self._fid:
            measures |= self._fid(forgetful)
        _check_finite(measures)
        goal = evaluator.look(self._generator, codes.w_target)
        results = {"person": person.name, "title": person.title, **measures}
        results["notes"] = [f"left out: {line}" for line in about["skipped"]]
        row = {"before": own[0].images[0]}
        if person.photo:
            photo, _ = self._coder.photo(person.photo)
            results["inversion"] = evaluator.likeness(photo, own[0])
            _check_finite(results["inversion"])
            results["notes"] += _doubt(results)
            row = {"photo": photo[0], "reconstruction before": own[0].images[0]}
        row |= {"after": own[1].images[0], "target": goal.images[0]}
        for note in results["notes"]:
            self._say(f"note: {note}")
        results["ids"] = self._ids(about["training"])
        results["seconds"] = {"training": about["seconds"]}
        # The training's settings, with today's measures.
        settings = about["config"] | {"evaluate": config.evaluate.to_dict()}
        results["config"] = json.loads(json.dumps(settings))  # of lists
        report.pictures(folder.path / PICTURES, row)
        report.before_after(
            folder.path / PICTURE,
            row,
            kept.shown,
            f"Forgetting {person.title}: {settings['steps']} steps,"
            f" target {settings['target']['name']!r}",
        )
        views = {"before": own[0], "after": own[1], "target": goal}
        faces = {name: next(iter(view.faces.values())) for name, view in views.items()}
        folder.save_results(
            results,
            {name: seen.embeddings[0] for name, seen in faces.items() if seen.found[0]},
        )
        return results

    def _before_and_after(
        self, forgetful: nnx.Module, w: np.ndarray
    ) -> tuple[View, View]:
        look = self._evaluator.look
        return look(self._generator, w), look(forgetful, w)


def _doubt(results: Mapping) -> list[str]:
    """Returns a note where the photo's reconstruction is hardly the person."""
    own, others = results["inversion"]["id"], results["id_strangers"]
    if own is None or others is None or own > (1 + others) / 2:
        return []
    return [
        f"the reconstruction is like the photo by {own:.2f} only (two strangers:"
        f" {others:.2f}), so what is forgotten may be somebody else; see"
        " config.source.align and config.source.refine"
    ]


def _check_finite(measures: Mapping[str, float | int | None]) -> None:
    values = [value for value in measures.values() if value is not None]
    if not np.isfinite(values).all():
        raise UnlearningError(
            "the generator came out broken, its measures are not finite:"
            f" {measures}; a lower learning rate may help"
        )
