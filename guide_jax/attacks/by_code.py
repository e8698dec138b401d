"""Attacks that look at codes: known ones, near ones, the encoder's, random ones."""

from collections.abc import Iterator

import numpy as np

from guide_jax.attacks import codes as near
from guide_jax.attacks import scoring
from guide_jax.attacks.context import AttackContext
from guide_jax.attacks.person import AttackedPerson
from guide_jax.attacks.scoring import Scores, Seen
from guide_jax.attacks.verdict import GENERATED, PHOTOS, Outcome, outcome_of
from guide_jax.models.generator import Generator

AROUND = "line", "neighbourhood"  # attacks that pass other people, too
CONTROLS = 10  # other people around whom they are repeated, for comparison
SWEEP = 100  # random people who are looked at before the progress bar moves


class CodeAttacks:
    """Attacks without optimisation."""

    def __init__(self, context: AttackContext):
        """Keeps what attacks share."""
        self._context = context
        self._seen_around: dict[str, list[Seen]] = {}

    def show(
        self, name: str, unlearned: Generator, person: AttackedPerson
    ) -> Iterator[Outcome]:
        """Shows codes, and compares the images with all that is known of the person.

        Args:
            name: "replay", "edits", "line", "neighbourhood" or "other_codes".
            unlearned: the generator that has forgotten the person.
            person: the person.
        """
        context = self._context
        other = name == "other_codes"
        w = person.other_codes if other else self._near(name, person.codes)
        seen = {
            group: context.scorer.see(context.images(generator, w))
            for group, generator in context.both(unlearned).items()
        }
        for kind, references in person.references.items():
            scores = {g: scoring.closest(x, references) for g, x in seen.items()}
            if name in AROUND:
                scores["strangers"] = self._around_others(name, references)
            yield outcome_of(name, kind, None, scores)

    def encode(self, unlearned: Generator, person: AttackedPerson) -> Outcome:
        """Inverts photos by the encoder, and compares each image with its photo."""
        context, probes = self._context, person.probes
        w = context.encoded(probes.images)
        scores = {
            group: context.show(generator, w, probes.faces)
            for group, generator in context.both(unlearned).items()
        }
        if strangers := person.strangers:
            w = context.encoded(strangers.images)
            scores["strangers"] = context.show(context.generator, w, strangers.faces)
        return outcome_of("encoder", PHOTOS, None, scores)

    def look_through(self, unlearned: Generator, person: AttackedPerson) -> Outcome:
        """Looks for the person, and for strangers, among random people."""
        context, settings = self._context, self._context.settings
        references, strangers = person.references[GENERATED], person.strangers
        sought = context.scorer.see(strangers.faces) if strangers else None
        found: dict[str, list[Scores]] = {}
        count = settings.random_people
        with context.console.bar("random", "person", count) as bar:
            for i, start in enumerate(range(0, count, SWEEP)):
                size = min(SWEEP, count - start)
                w = context.latents.random(settings.seed + 1 + i, size)
                for group, generator in context.both(unlearned).items():
                    seen = context.scorer.see(context.images(generator, w))
                    # The closest random person for each of the person's references.
                    best = scoring.closest(references, seen)
                    found.setdefault(group, []).append(best)
                    if group == "original" and sought is not None:
                        best = scoring.closest(sought, seen)
                        found.setdefault("strangers", []).append(best)
                bar.update(size)
        scores = {
            group: {x: np.fmax.reduce([part[x] for part in parts]) for x in parts[0]}
            for group, parts in found.items()
        }
        return outcome_of("random", GENERATED, count, scores)

    def _near(self, name: str, w: np.ndarray) -> np.ndarray:
        """Returns the codes that an attack derives from codes `[P, L, D]`."""
        context = self._context
        if name == "edits":
            return near.edits(w, context.directions, context.settings.edit_sizes)
        if name == "line":
            return near.line(w, context.w_avg)
        if name == "neighbourhood":
            people, seed = context.people, context.settings.seed
            return near.neighbourhood(w, context.w_avg, people, seed)
        return w

    def _around_others(self, name: str, references: Seen) -> Scores:
        """Returns how close the same codes around other people come to the person.

        They pass the mean face and further people, who resemble many.
        """
        context = self._context
        if name not in self._seen_around:
            self._seen_around[name] = [
                context.scorer.see(
                    context.images(context.generator, self._near(name, w[None]))
                )
                for w in context.people[:CONTROLS]
            ]
        found = [scoring.closest(x, references) for x in self._seen_around[name]]
        return {
            judge: np.array([np.fmax.reduce(x[judge]) for x in found])
            for judge in found[0]
        }
