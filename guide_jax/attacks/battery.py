"""Runs the attacks on one person's unlearned generator."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from guide_jax.attacks import scoring
from guide_jax.attacks.by_code import CodeAttacks
from guide_jax.attacks.by_steps import SEARCHES, StepAttacks
from guide_jax.attacks.context import AttackContext
from guide_jax.attacks.person import AttackedPerson, describe
from guide_jax.attacks.scoring import Scores, Threshold
from guide_jax.attacks.verdict import (
    GENERATED,
    LEVEL_OF,
    PHOTOS,
    Outcome,
    give_verdict,
    listed,
)
from guide_jax.config_types import Config
from guide_jax.console import Console
from guide_jax.latents import Codes, LatentFinder
from guide_jax.metrics.calibration import Calibration
from guide_jax.metrics.judges import Judge
from guide_jax.models.generator import Generator
from guide_jax.storage.locate import Networks


class Attacker:
    """Attacks unlearned generators of one original."""

    def __init__(
        self,
        config: Config,
        networks: Networks,
        latents: LatentFinder,
        judges: Mapping[str, Judge],
        calibrations: Mapping[str, Calibration],
        console: Console,
    ):
        """Prepares the attacks.

        Args:
            config: the run's settings.
            networks: the run's networks. Without an encoder, attacks that need it are
                left out.
            latents: draws random people, and reads strangers' photos.
            judges: name -> judge; all of them must have taken no part in training.
            calibrations: of those judges whose error rates on real photos are known.
            console: prints lines and progress bars.

        Raises:
            InputError: the directions or the strangers cannot be used.
        """
        self._context = AttackContext(config, networks, latents, judges, console)
        self._by_code = CodeAttacks(self._context)
        self._by_steps = StepAttacks(self._context)
        self._calibrations = dict(calibrations)

    def __call__(
        self,
        unlearned: Generator,
        codes: Codes,
        photos: np.ndarray,
        tests: np.ndarray,
        which: tuple[str, ...],
    ) -> dict[str, Any]:
        """Attacks one person's unlearned generator.

        Args:
            unlearned: the generator that has forgotten the person.
            codes: the person's codes.
            photos: the photos from which the person was forgotten, `[n, H, W, 3]`;
                none for a sampled person.
            tests: other photos of the person.
            which: names of the attacks, keys of `LEVEL_OF`.

        Returns:
            JSON-able: "verdict" (see `verdict.give_verdict`), "outcomes" (see
            `verdict.Outcome`), "strangers" (where they come from; None without any),
            "left_out" (a line for each attack that could not be run), "crowd"
            (random people's similarities to the person, by judge), and "inputs" (path
            -> SHA-256 of the files that only attacks need).
        """
        context, strangers = self._context, self._context.strangers
        person = describe(context, codes, photos, tests)
        outcomes: list[Outcome] = []
        left_out: list[str] = []
        for name in LEVEL_OF:
            if name not in which:
                continue
            if reason := self._impossible(name, person):
                left_out.append(f"{name}: {reason}")
            else:
                outcomes += self._run(name, unlearned, person)
        crowd = scoring.closest(context.seen_people[0], person.references[GENERATED])
        thresholds = self._thresholds(person, crowd)
        return {
            "verdict": give_verdict(outcomes, thresholds, context.settings.margin),
            "outcomes": [x.as_json() for x in outcomes],
            "strangers": strangers.described if strangers else None,
            "left_out": left_out,
            "crowd": {judge: listed(values) for judge, values in crowd.items()},
            "inputs": context.inputs,
        }

    def _impossible(self, name: str, person: AttackedPerson) -> str:
        """Returns why an attack cannot be run; empty if it can."""
        if name == "edits" and not self._context.directions:
            return "config.attack.directions names no directions"
        if name == "encoder" and not self._context.has_encoder:
            return "config.networks.encoder names no encoder that fits"
        if name == "other_codes" and not len(person.other_codes):
            return "there are no other photos of the person"
        return ""

    def _run(
        self, name: str, unlearned: Generator, person: AttackedPerson
    ) -> Iterable[Outcome]:
        if name in SEARCHES:
            return self._by_steps.search(name, unlearned, person)
        if name == "relearn":
            return self._by_steps.relearn(unlearned, person)
        if name == "random":
            return [self._by_code.look_through(unlearned, person)]
        if name == "encoder":
            return [self._by_code.encode(unlearned, person)]
        return self._by_code.show(name, unlearned, person)

    def _thresholds(
        self, person: AttackedPerson, crowd: Scores
    ) -> dict[str, dict[str, Threshold]]:
        """Returns the judges' thresholds on generated images and on photos."""
        generated = {
            name: scoring.for_person(threshold, crowd[name])
            for name, threshold in self._context.thresholds.items()
        }
        photos = dict(generated)
        if PHOTOS in person.references:
            for name, calibration in self._calibrations.items():
                strangers = generated[name].strangers
                photos[name] = scoring.of_photos(calibration, strangers)
        return {GENERATED: generated, PHOTOS: photos}
