"""Attacks stored unlearned generators, and adds the verdict to their results."""

import json
from collections.abc import Sequence
from typing import Any

from guide_jax.attacks.battery import Attacker
from guide_jax.attacks.verdict import in_words
from guide_jax.config_types import Config
from guide_jax.console import Console
from guide_jax.experiment.evaluate import EvaluateJob, add_verdict
from guide_jax.latents import Found
from guide_jax.people import Person
from guide_jax.reports.summary import Done, summarise
from guide_jax.storage import fingerprint
from guide_jax.storage.locate import Networks
from guide_jax.storage.run_folder import RESULTS, PersonFolder, Stored
from guide_jax.training.sharding import DeviceGroup


class AttackJob:
    """`--mode=attack`: tries to get forgotten people back from stored results."""

    def __init__(
        self,
        config: Config,
        networks: Networks,
        devices: DeviceGroup | None = None,
        console: Console | None = None,
        evaluate: EvaluateJob | None = None,
        which: Sequence[str] | None = None,
    ):
        """Prepares the attacks.

        Args:
            config: the run's settings.
            networks: the run's networks.
            devices: unused, because attacks need only one device.
            console: prints lines and progress bars.
            evaluate: measures results that have no up-to-date measures, and holds the
                judges; made here by default.
            which: names of the attacks; `config.attack.which` by default.
        """
        del devices
        self._config = config
        self._console = console or Console()
        self._evaluate = evaluate or EvaluateJob(
            config, networks, console=self._console
        )
        self._which = tuple(config.attack.which if which is None else which)
        self._made_of = fingerprint.of_attacks(config, networks.hashes, self._which)
        self._attacker = Attacker(
            config,
            networks,
            self._evaluate.latents,
            self._evaluate.judges,
            self._evaluate.calibrations,
            self._console,
        )

    def __call__(self, person: Person, folder: PersonFolder) -> dict[str, Any]:
        """Attacks the generator that is stored in a person's folder.

        Returns:
            The person's entry in results.json, with the verdict.

        Raises:
            InputError: no result is stored, or it belongs to another person.
            UnlearningError: a measure is not finite.
        """
        stored = folder.load()
        entry = folder.results()
        if not entry or not self._evaluate.is_current(entry, stored.record.training):
            who = self._evaluate.who(person)
            entry = self._evaluate.measure(person, who, folder, stored)
        return self.attack(person, folder, stored, entry)

    def attack(
        self,
        person: Person,
        folder: PersonFolder,
        stored: Stored,
        entry: dict[str, Any],
        found: Found | None = None,
    ) -> dict[str, Any]:
        """Attacks a stored generator, unless it was attacked with these settings.

        Args:
            person: the person who was forgotten.
            folder: the person's folder.
            stored: its contents.
            entry: its entry in results.json.
            found: the person's photos; read from their files by default.

        Returns:
            The entry with the verdict.
        """
        unlearned, codes, record = stored
        self._evaluate.check_person(person, folder, record)
        attacks = folder.attacks(record.training)
        if attacks is None or not self._is_current(attacks, entry):
            photos, tests = self._evaluate.photos(person, record.photos, found)
            nothing = self._evaluate.images(codes.w_u[:1])[:0]
            self._console.say(f"attacking: {', '.join(self._which)}")
            attacks = self._attacker(
                unlearned,
                codes,
                photos.images if photos else nothing,
                tests.images if tests else nothing,
                self._which,
            )
            attacks |= {
                "training": record.training,
                "made_of": self._made_of,
                "measures": entry["ids"]["measures"],
            }
            folder.save_attacks(attacks)
        add_verdict(entry, attacks)
        config = json.loads((folder.path / RESULTS).read_text())["config"]
        settings = config | {"attack": self._config.fields["attack"]}
        folder.save_results(summarise([Done(entry, folder.path)], [], settings))
        self._console.say(f"{person.title}: {in_words(attacks['verdict'])}")
        return entry

    def done(self, person: Person, folder: PersonFolder) -> dict[str, Any] | None:
        """Returns the entry of a person whose verdict is up to date, otherwise None.

        Raises:
            InputError: the result belongs to another person.
        """
        entry = self._evaluate.done(person, folder)
        if not entry or "verdict" not in entry:
            return None
        attacks = folder.attacks(entry["ids"]["training"])
        return entry if attacks and self._is_current(attacks, entry) else None

    def _is_current(self, attacks: dict[str, Any], entry: dict[str, Any]) -> bool:
        return (
            attacks["made_of"] == self._made_of
            and attacks["measures"] == entry["ids"]["measures"]
        )

    def close(self) -> None:
        """Does nothing, because there are no other processes."""
