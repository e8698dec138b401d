"""Attacks that optimise, step by step: a code for a photo, or the weights."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from guide_jax.attacks import scoring, subjects
from guide_jax.attacks.context import AttackContext
from guide_jax.attacks.person import AttackedPerson
from guide_jax.attacks.relearn import make_relearn
from guide_jax.attacks.scoring import Scores
from guide_jax.attacks.subjects import Probes
from guide_jax.attacks.verdict import PHOTOS, Outcome, outcome_of
from guide_jax.inversion import make_prior
from guide_jax.models.generator import Generator
from guide_jax.search import Search

IN_WPLUS, BY_IDENTITY = "search_wplus", "search_identity"
SEARCHES = "search_w", BY_IDENTITY, IN_WPLUS
RELEARNED = 4  # strangers who are learned, because each is learned alone

ByBudget = dict[int, Scores]  # number of steps -> what was reached


class StepAttacks:
    """Attacks with steps, on both generators and, for comparison, on strangers."""

    def __init__(self, context: AttackContext):
        """Keeps what attacks share; programs are compiled when first needed."""
        self._context = context
        # What strangers reach does not depend on the person.
        self._known: dict[tuple[str, bool], ByBudget] = {}

    def search(
        self, name: str, unlearned: Generator, person: AttackedPerson
    ) -> Iterator[Outcome]:
        """Searches for codes whose images are closest to the photos.

        Args:
            name: one of `SEARCHES`.
            unlearned: the generator that has forgotten the person.
            person: the person.
        """
        settings = self._context.settings
        probes = subjects.first(person.probes, settings.photos)
        work = functools.partial(self._searched, name)
        steps = settings.starts * max(settings.budgets)
        yield from self._run(name, work, unlearned, person, probes, None, steps)

    def relearn(
        self, unlearned: Generator, person: AttackedPerson
    ) -> Iterator[Outcome]:
        """Fine-tunes generators on one photo each."""
        probes = subjects.first(person.probes, 1)
        steps = max(self._context.settings.relearn_steps)
        yield from self._run(
            "relearn", self._relearned, unlearned, person, probes, RELEARNED, steps
        )

    def _run(
        self,
        name: str,
        work: Callable[[Generator, Probes, tqdm], ByBudget],
        unlearned: Generator,
        person: AttackedPerson,
        probes: Probes,
        most: int | None,
        per_photo: int,
    ) -> Iterator[Outcome]:
        """Runs an attack on both generators, and on never-seen people.

        Args:
            name: the attack's name.
            work: the attack.
            unlearned: the generator that has forgotten the person.
            person: the person.
            probes: the person's photos.
            most: number of strangers at most; None for all.
            per_photo: steps for each photo.
        """
        context, known = self._context, (name, person.altered)
        attacked = {
            group: (generator, probes)
            for group, generator in context.both(unlearned).items()
        }
        if person.strangers and known not in self._known:
            few = subjects.first(person.strangers, most)
            attacked["strangers"] = context.generator, few
        total = sum(len(held.images) for _, held in attacked.values()) * per_photo
        with context.console.bar(name, "step", total) as bar:
            found = {g: work(made, held, bar) for g, (made, held) in attacked.items()}
        if person.strangers:
            self._known.setdefault(known, found.get("strangers", {}))
            found["strangers"] = self._known[known]
        for steps in found["unlearned"]:
            scores = {group: by_steps[steps] for group, by_steps in found.items()}
            yield outcome_of(name, PHOTOS, steps, scores)

    @functools.cached_property
    def _search(self) -> Search:
        context = self._context
        return Search(
            context.generator,
            context.networks["lpips"],
            context.networks["identity"],
            context.latents.prior or make_prior(context.generator),
            context.settings.learning_rate,
            context.settings.batch,
        )

    def _searched(
        self, name: str, generator: Generator, held: Probes, bar: tqdm
    ) -> ByBudget:
        context, starts = self._context, self._context.settings.starts
        w = subjects.starting_codes(
            context.encoded(held.images) if context.has_encoder else None,
            context.w_avg,
            context.people,
            starts,
        )
        w = np.broadcast_to(w, (len(held.images), *w.shape[1:]))
        w = w.reshape(-1, *w.shape[2:])
        if name != IN_WPLUS:
            w = w.mean(axis=1, keepdims=True)
        reached = self._search(
            generator,
            np.repeat(held.images, starts, axis=0),
            w,
            (0, *context.settings.budgets),
            "identity" if name == BY_IDENTITY else "photo",
            bar,
        )
        scores = {}
        for steps, (codes, errors) in reached.items():
            # The attacker keeps the start with the smallest error.
            rows = errors.reshape(-1, starts).argmin(axis=1)
            best = codes.reshape(-1, starts, *codes.shape[1:])
            best = best[np.arange(len(rows)), rows]
            scores[steps] = context.show(generator, best, held.faces)
        return scores

    @functools.cached_property
    def _relearn(self) -> Any:
        return make_relearn(self._context.generator, self._context.networks["lpips"])

    def _relearned(self, generator: Generator, held: Probes, bar: tqdm) -> ByBudget:
        context = self._context
        budgets = (0, *context.settings.relearn_steps)
        shown: dict[int, list[np.ndarray]] = {steps: [] for steps in budgets}
        for photo in np.split(held.images, len(held.images)):
            w = context.encoded(photo)
            images = self._relearn(generator, w, photo, budgets, bar)
            for steps, image in images.items():
                shown[steps].append(image)
        faces = context.scorer.see(held.faces)
        return {
            steps: scoring.paired(context.scorer.see(np.concatenate(images)), faces)
            for steps, images in shown.items()
        }
