"""Forgets people: computes the code, trains, stores the result and measures it."""

import time
from typing import Any, TypeGuard

from guide_jax.config_types import Config
from guide_jax.console import Console
from guide_jax.errors import DoubtError, UnlearningError
from guide_jax.experiment.attack import AttackJob
from guide_jax.experiment.evaluate import EvaluateJob, method_of
from guide_jax.latents import Found, LatentFinder
from guide_jax.people import Person
from guide_jax.reports import pictures
from guide_jax.reports.summary import versions
from guide_jax.storage import fingerprint
from guide_jax.storage.locate import Networks
from guide_jax.storage.origin import Origin
from guide_jax.storage.run_folder import PICTURES, PersonFolder, TrainingRecord
from guide_jax.training import sharding
from guide_jax.training.losses import LossNetworks
from guide_jax.training.sharding import DeviceGroup
from guide_jax.training.trainer import Trainer


def make_trainer(
    config: Config,
    networks: Networks,
    devices: DeviceGroup | None = None,
    console: Console | None = None,
) -> Trainer:
    """Creates the trainer of a run."""
    return Trainer(
        networks["generator"],
        LossNetworks(networks["lpips"], networks["identity"]),
        config.training,
        devices=devices,
        console=console,
    )


class UnlearnJob:
    """`--mode=unlearn`: forgets people, skipping work that is already done."""

    def __init__(
        self,
        config: Config,
        networks: Networks,
        devices: DeviceGroup | None = None,
        console: Console | None = None,
    ):
        """Prepares the training and the measures.

        Args:
            config: the run's settings.
            networks: the run's networks.
            devices: the devices that share each step; by default, JAX's first device.
            console: prints lines and progress bars.
        """
        self._config, self._networks = config, networks
        self._console = console or Console()
        self._train = make_trainer(config, networks, devices, self._console)
        self._say_how_many_share(devices)
        self._latents = LatentFinder(config, networks, self._console)
        self._evaluate = EvaluateJob(
            config, networks, console=self._console, latents=self._latents
        )
        self._attack = None
        if which := config.attack.after_training:
            self._attack = AttackJob(
                config,
                networks,
                console=self._console,
                evaluate=self._evaluate,
                which=which,
            )

    def __call__(self, person: Person, folder: PersonFolder) -> dict[str, Any]:
        """Forgets a person and measures the result, skipping what is already done.

        Args:
            person: the person to forget.
            folder: the folder for the results; `experiment.modes.run` lists its files.

        Returns:
            The person's entry in results.json.

        Raises:
            InputError: the photo or the folder cannot be used; DoubtError if photos or
                reconstructions may show somebody else.
            UnlearningError: a loss or a measure is not finite.
        """
        entry, who, training = self._current(person, folder)
        if self._is_complete(entry):
            self._console.say(
                f"{person.title} is already done with these settings: {folder.path}"
            )
            return entry
        stored, found = folder.stored(training), None
        if stored is None:
            found = self._unlearn(person, who, folder, training)
            stored = folder.load()  # so that the measures are of what is on disk
        folder.clean_up(training)
        entry = entry or self._evaluate.measure(person, who, folder, stored, found)
        if self._attack and "verdict" not in entry:
            return self._attack.attack(person, folder, stored, entry, found)
        return entry

    def done(self, person: Person, folder: PersonFolder) -> dict[str, Any] | None:
        """Returns the entry of a person who needs no more work, otherwise None."""
        if not folder.results():
            return None  # without reading the photos
        entry, _, _ = self._current(person, folder)
        return entry if self._is_complete(entry) else None

    def _current(
        self, person: Person, folder: PersonFolder
    ) -> tuple[dict[str, Any] | None, str, str]:
        """Returns an up-to-date entry or None, and the person's and training's hash."""
        who = self._evaluate.who(person)
        hashes = self._networks.hashes
        training = fingerprint.of_training(self._config, who, hashes)
        entry = folder.results()
        current = entry is not None and self._evaluate.is_current(entry, training)
        return entry if current else None, who, training

    def _is_complete(self, entry: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
        """Returns whether nothing is left to do."""
        return entry is not None and (not self._attack or "verdict" in entry)

    def _say_how_many_share(self, devices: DeviceGroup | None) -> None:
        settings = self._config.parallel
        if self._config.training.erase:
            return
        if devices is None or settings.devices or settings.over != "latents":
            return
        used, available = len(devices.devices), len(sharding.devices_of(0))
        if used < available:
            self._console.say(
                f"{used} of {available} devices share each step, because the adjacent"
                " and global latents do not divide over more (config.parallel)"
            )

    def close(self) -> None:
        """Lets the other processes end."""
        self._train.close()

    def _unlearn(
        self, person: Person, who: str, folder: PersonFolder, training: str
    ) -> Found:
        """Trains and stores the result; returns what the person's photos gave."""
        origin = Origin(
            config=self._config.fields,
            person=person.title,
            who=who,
            networks=dict(self._networks.hashes),
            versions=versions(),
        )
        if self._config.overwrite:
            folder.drop_others(training, origin)
        else:
            folder.check_replaceable(training, origin)
        config, began = self._config, time.monotonic()

        def begin(found: Found) -> None:
            nonlocal began
            folder.prepare()
            self._check(found, folder)
            self._console.say(
                f"forgetting {person.title} ({config.name},"
                f" {self._networks['generator'].resolution} px,"
                f" {method_of(config.fields)}); results go to {folder.path}"
            )
            began = time.monotonic()

        found = self._latents(person, begin)
        # To search for what is left of an erased person is to train.
        searched = time.monotonic() - began if config.training.erase else 0.0
        codes = found.codes
        state = folder.train_state(training, config.training.save_every, origin)
        with folder.step_log(training) as log:
            try:
                unlearned = self._train(
                    codes.w_u,
                    codes.w_target,
                    changes=found.changes,
                    on_step=log,
                    state=state,
                )
            except UnlearningError:
                if state.step is None:  # otherwise a resumed run continues the log
                    log.drop()
                raise
        record = TrainingRecord(
            config=config.fields,
            training=training,
            person=person.title,
            who=who,
            generator=self._networks.hashes["generator"],
            skipped=found.skipped,
            seconds=round(log.seconds + searched, 1),
            photos=max(1, len(found.photos.paths)),
            tests=[path.name for path in found.tests.paths],
            networks=dict(origin.networks),
            versions=dict(origin.versions),
        )
        folder.finish(unlearned, codes, record)
        return found

    def _check(self, found: Found, folder: PersonFolder) -> None:
        """Raises DoubtError if the photos or reconstructions may show somebody else."""
        doubts = self._evaluate.doubts(found)
        if not doubts:
            return
        if self._config.source.accept_doubt:
            for line in doubts:
                self._console.say(f"note: {line}")
            return
        made = self._evaluate.images(found.codes.w_u[:1])
        row = {"photo": found.photos.images[0], "reconstruction before": made[0]}
        pictures.save_images(folder.path / PICTURES, row)
        raise DoubtError(
            f"{'; '.join(doubts)}. {folder.path / PICTURES} shows photo and"
            " reconstruction. Align the photo (--config.source.align=ffhq), refine it"
            " longer (--config.source.refine.steps=400), use another photo, or another"
            " generator; --config.source.accept_doubt=True continues anyway"
        )
