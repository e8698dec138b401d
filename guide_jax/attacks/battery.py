"""Runs all attacks on one person's unlearned generator."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from guide_jax.attacks import codes as near
from guide_jax.attacks import scoring, subjects
from guide_jax.attacks.relearn import make_relearn
from guide_jax.attacks.scoring import Scorer, Scores, Seen
from guide_jax.attacks.search import Search
from guide_jax.attacks.subjects import Probes
from guide_jax.attacks.verdict import (
    GENERATED,
    LEVEL_OF,
    PHOTOS,
    Outcome,
    give_verdict,
)
from guide_jax.config_types import Config
from guide_jax.console import Console
from guide_jax.inversion import make_encode, make_prior
from guide_jax.latents import Codes, LatentFinder
from guide_jax.metrics.calibration import Calibration
from guide_jax.metrics.judges import Judge
from guide_jax.models.generator import Generator, ImagePass
from guide_jax.storage.locate import Networks, locate

IN_WPLUS = "search_wplus"
SEARCHES = "search_w", "search_identity", IN_WPLUS
MOST_CODES = 4  # of a person's codes that are replayed, edited and searched around
SWEEP = 100  # random people who are looked at before the progress bar moves
COPIES = 8  # photographs of a person without other photos
AROUND = "line", "neighbourhood"  # attacks that pass other people, too
CONTROLS = 10  # other people around whom they are repeated, for comparison
RELEARNED = 4  # strangers who are learned, because each is learned alone


ByBudget = dict[int, Scores]  # number of steps -> what was reached


class Target(NamedTuple):
    """A person, as attacks see the person.

    Attributes:
        codes: the person's codes `[P, L, D]`.
        other_codes: the original's codes of other photos, `[T, L, D]`.
        references: "generated" and, if there are photos, "photos": embeddings of what
            the person looks like.
        tests: the person's other photos.
        probes: photos that the attacker holds.
    """

    codes: np.ndarray
    other_codes: np.ndarray
    references: dict[str, Seen]
    tests: np.ndarray
    probes: Probes


class Attacker:
    """Attacks unlearned generators; programs are compiled once for all people."""

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
        self._config, self._networks, self._latents = config, networks, latents
        self._settings, self._console = config.attack, console
        self._generator: Generator = networks["generator"]
        self._calibrations = dict(calibrations)
        self._scorer = Scorer(judges)
        self._images = ImagePass(self._generator, config.evaluate.batch)
        self._w_avg = np.asarray(self._generator.mapping.w_avg[...]).reshape(
            -1, self._generator.w_dim
        )[0]
        encoder = networks.get("encoder")
        self._encode = make_encode(encoder, self._generator) if encoder else None
        self._known: dict[tuple[str, bool], ByBudget] = {}
        self._seen_around: dict[str, list[Seen]] = {}
        self._directions = {}
        if self._settings.directions:
            self._directions = near.read_directions(
                locate(self._settings.directions),
                self._generator.num_ws,
                self._generator.w_dim,
            )
        # Now, so that a mistake is found before any training.
        self._strangers = subjects.find_strangers(
            self._settings,
            latents,
            self._generator.resolution,
            config.source.psi,
            self._directions,
        )

    # What is shared by all people ----------------------------------------------------

    @functools.cached_property
    def _people(self) -> np.ndarray:
        """Random people from whom attacks start, `[M, L, D]`."""
        return self._latents.random(self._settings.seed, 100)

    @functools.cached_property
    def _seen_people(self) -> tuple[Seen, np.ndarray]:
        """Embeddings and images of these people, by the original generator."""
        images = self._images(self._generator, self._people)
        return self._scorer.see(images), images

    @functools.cached_property
    def _thresholds(self) -> dict[str, scoring.Threshold]:
        return scoring.thresholds(self._scorer, *self._seen_people)

    @functools.cached_property
    def _search(self) -> Search:
        return Search(
            self._generator,
            self._networks["lpips"],
            self._networks["identity"],
            self._latents.prior or make_prior(self._generator),
            self._settings.learning_rate,
            self._settings.batch,
        )

    @functools.cached_property
    def _relearn(self) -> Any:
        return make_relearn(self._generator, self._networks["lpips"])

    @functools.cached_property
    def _photographed_strangers(self) -> Probes:
        """A photograph of each stranger."""
        assert self._strangers is not None
        parts = [
            subjects.photographs(shown[None], face, 1, self._resolution, i)
            for i, (shown, face) in enumerate(
                zip(self._strangers.images, self._strangers.faces, strict=True)
            )
        ]
        return Probes(*(np.concatenate(x) for x in zip(*parts, strict=True)))

    # One person ----------------------------------------------------------------------

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
            `verdict.Outcome`), "strangers" (where they come from; None without any)
            "left_out" (a line for each attack that could not be run), and "crowd"
            (random people's similarities to the person).
        """
        target = self._target(codes, photos, tests)
        outcomes: list[Outcome] = []
        left_out: list[str] = []
        for name in LEVEL_OF:
            if name not in which:
                continue
            if reason := self._impossible(name, target):
                left_out.append(f"{name}: {reason}")
                continue
            outcomes += self._run(name, unlearned, target)
        verdict = give_verdict(
            outcomes, self._thresholds_of(target), self._settings.margin
        )
        return {
            "verdict": verdict,
            "outcomes": [x.as_json() for x in outcomes],
            "strangers": self._strangers.described if self._strangers else None,
            "left_out": left_out,
            "crowd": self._crowd(target),
        }

    def _crowd(self, target: Target) -> dict[str, list[float | None]]:
        """Returns random people's similarities to the person, by judge."""
        scores = scoring.closest(self._seen_people[0], target.references[GENERATED])
        return {name: _listed(values) for name, values in scores.items()}

    def _target(self, codes: Codes, photos: np.ndarray, tests: np.ndarray) -> Target:
        own = codes.w_u[: max(1, len(photos))][:MOST_CODES]
        made = self._images(self._generator, own)
        references = {GENERATED: self._scorer.see(made)}
        if len(photos):
            references[PHOTOS] = self._scorer.see(np.concatenate([photos, tests]))
        if len(tests):
            probes = Probes(tests, tests)
        else:
            # Other photos of a sampled person are edited, those of a photo are not.
            shown = photos[:1] if len(photos) else self._edited(own[:1])
            face = photos[0] if len(photos) else made[0]
            probes = subjects.photographs(
                shown, face, COPIES, self._resolution, self._settings.seed
            )
        return Target(own, codes.tests, references, tests, probes)

    def _edited(self, w: np.ndarray) -> np.ndarray:
        """Returns images of a code and its edits, `[N, H, W, 3]`."""
        edits = near.edits(w, self._directions, self._settings.edit_sizes)
        return self._images(self._generator, edits if len(edits) else w)

    @property
    def _resolution(self) -> int:
        """Side in pixels of the detail in the person's and the strangers' photos."""
        if self._strangers:
            return self._strangers.resolution
        return self._generator.resolution

    def _thresholds_of(self, target: Target) -> dict[str, dict[str, scoring.Threshold]]:
        found = {GENERATED: self._thresholds, PHOTOS: dict(self._thresholds)}
        if PHOTOS in target.references:
            for name, calibration in self._calibrations.items():
                strangers = self._thresholds[name].strangers
                found[PHOTOS][name] = scoring.of_photos(calibration, strangers)
        return found

    def _impossible(self, name: str, target: Target) -> str:
        """Returns why an attack cannot be run; empty if it can."""
        if name == "edits" and not self._directions:
            return "config.attack.directions names no directions"
        if name == "encoder" and self._encode is None:
            return "config.networks.encoder names no encoder"
        if name == "other_codes" and not len(target.other_codes):
            return "there are no other photos of the person"
        return ""

    def _run(
        self, name: str, unlearned: Generator, target: Target
    ) -> Iterator[Outcome]:
        if name in SEARCHES:
            yield from self._run_search(name, unlearned, target)
        elif name == "relearn":
            yield from self._run_relearn(unlearned, target)
        elif name == "random":
            yield self._run_random(unlearned, target)
        elif name == "encoder":
            yield self._run_encoder(unlearned, target)
        else:
            yield from self._run_codes(name, unlearned, target)

    def _both(self, unlearned: Generator) -> dict[str, Generator]:
        return {"original": self._generator, "unlearned": unlearned}

    def _run_codes(
        self, name: str, unlearned: Generator, target: Target
    ) -> Iterator[Outcome]:
        """Shows codes, and compares the images with all that is known of the person."""
        w = (
            target.other_codes
            if name == "other_codes"
            else self._near(name, target.codes)
        )
        seen = {
            group: self._scorer.see(self._images(generator, w))
            for group, generator in self._both(unlearned).items()
        }
        for kind, references in target.references.items():
            scores = {g: scoring.closest(x, references) for g, x in seen.items()}
            if name in AROUND:
                scores["strangers"] = self._around_others(name, references)
            yield _outcome(name, kind, None, scores)

    def _near(self, name: str, w: np.ndarray) -> np.ndarray:
        """Returns the codes that an attack derives from codes `[P, L, D]`."""
        if name == "edits":
            return near.edits(w, self._directions, self._settings.edit_sizes)
        if name == "line":
            return near.line(w, self._w_avg)
        if name == "neighbourhood":
            people, seed = self._people, self._settings.seed
            return near.neighbourhood(w, self._w_avg, people, seed)
        return w

    def _around_others(self, name: str, references: Seen) -> Scores:
        """Returns how close the same codes around other people come to the person.

        They pass the mean face and further people, who resemble many.
        """
        if name not in self._seen_around:
            self._seen_around[name] = [
                self._scorer.see(
                    self._images(self._generator, self._near(name, w[None]))
                )
                for w in self._people[:CONTROLS]
            ]
        found = [scoring.closest(x, references) for x in self._seen_around[name]]
        return {
            judge: np.array([np.fmax.reduce(x[judge]) for x in found])
            for judge in found[0]
        }

    def _run_encoder(self, unlearned: Generator, target: Target) -> Outcome:
        """Inverts photos by the encoder, and compares each image with its photo."""
        probes = target.probes
        scores = {
            group: self._show(generator, self._encoded(probes.images), probes.faces)
            for group, generator in self._both(unlearned).items()
        }
        if strangers := self._probes_of_strangers(target):
            w = self._encoded(strangers.images)
            scores["strangers"] = self._show(self._generator, w, strangers.faces)
        return _outcome("encoder", PHOTOS, None, scores)

    def _run_search(
        self, name: str, unlearned: Generator, target: Target
    ) -> Iterator[Outcome]:
        """Searches for the code whose image is closest to a photo."""
        probes = subjects.first(target.probes, self._settings.photos)
        work = functools.partial(self._searched, name)
        per_photo = self._settings.starts * max(self._settings.budgets)
        yield from self._against_strangers(
            name, work, unlearned, target, probes, None, per_photo
        )

    def _run_relearn(self, unlearned: Generator, target: Target) -> Iterator[Outcome]:
        """Fine-tunes generators on one photo each."""
        probes = subjects.first(target.probes, 1)
        per_photo = max(self._settings.relearn_steps)
        yield from self._against_strangers(
            "relearn", self._relearned, unlearned, target, probes, RELEARNED, per_photo
        )

    def _against_strangers(
        self,
        name: str,
        work: Callable[[Generator, Probes, tqdm], ByBudget],
        unlearned: Generator,
        target: Target,
        probes: Probes,
        most: int | None,
        per_photo: int,
    ) -> Iterator[Outcome]:
        """Runs an attack with steps on both generators, and on never-seen people.

        Args:
            name: the attack's name.
            work: the attack.
            unlearned: the generator that has forgotten the person.
            target: the person.
            probes: the person's photos.
            most: number of strangers at most; None for all.
            per_photo: steps for each photo.
        """
        attacked = {
            group: (generator, probes)
            for group, generator in self._both(unlearned).items()
        }
        # What strangers reach does not depend on the person.
        known = name, bool(len(target.tests))
        strangers = self._probes_of_strangers(target)
        if strangers and known not in self._known:
            few = subjects.first(strangers, most)
            attacked["strangers"] = self._generator, few
        total = sum(len(held.images) for _, held in attacked.values()) * per_photo
        with self._console.bar(name, "step", total) as bar:
            found = {g: work(made, held, bar) for g, (made, held) in attacked.items()}
        if strangers:
            self._known.setdefault(known, found.get("strangers", {}))
            found["strangers"] = self._known[known]
        for steps in found["unlearned"]:
            scores = {group: by_steps[steps] for group, by_steps in found.items()}
            yield _outcome(name, PHOTOS, steps, scores)

    def _searched(
        self, name: str, generator: Generator, held: Probes, bar: tqdm
    ) -> ByBudget:
        starts = self._settings.starts
        w = subjects.starting_codes(
            self._encoded(held.images) if self._encode else None,
            self._w_avg,
            self._people,
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
            (0, *self._settings.budgets),
            "identity" if name == "search_identity" else "photo",
            bar,
        )
        scores = {}
        for steps, (codes, errors) in reached.items():
            # The attacker keeps the start with the smallest error.
            rows = errors.reshape(-1, starts).argmin(axis=1)
            best = codes.reshape(-1, starts, *codes.shape[1:])
            best = best[np.arange(len(rows)), rows]
            scores[steps] = self._show(generator, best, held.faces)
        return scores

    def _relearned(self, generator: Generator, held: Probes, bar: tqdm) -> ByBudget:
        budgets = (0, *self._settings.relearn_steps)
        shown: dict[int, list[np.ndarray]] = {steps: [] for steps in budgets}
        for i in range(len(held.images)):
            photo = held.images[i : i + 1]
            w = self._encoded(photo) if self._encode else self._mean_code()
            images = self._relearn(generator, w, photo, budgets, bar)
            for steps, image in images.items():
                shown[steps].append(image)
        faces = self._scorer.see(held.faces)
        return {
            steps: scoring.paired(self._scorer.see(np.concatenate(images)), faces)
            for steps, images in shown.items()
        }

    def _run_random(self, unlearned: Generator, target: Target) -> Outcome:
        """Looks for the person, and for strangers, among random people."""
        references = target.references[GENERATED]
        strangers = self._probes_of_strangers(target)
        sought = self._scorer.see(strangers.faces) if strangers else None
        found: dict[str, list[Scores]] = {}
        count = self._settings.random_people
        with self._console.bar("random", "person", count) as bar:
            for i, start in enumerate(range(0, count, SWEEP)):
                size = min(SWEEP, count - start)
                w = self._latents.random(self._settings.seed + 1 + i, size)
                for group, generator in self._both(unlearned).items():
                    seen = self._scorer.see(self._images(generator, w))
                    # The closest random person for each of the person's references.
                    found.setdefault(group, []).append(
                        scoring.closest(references, seen)
                    )
                    if group == "original" and sought is not None:
                        found.setdefault("strangers", []).append(
                            scoring.closest(sought, seen)
                        )
                bar.update(size)
        scores = {
            group: {x: np.fmax.reduce([part[x] for part in parts]) for x in parts[0]}
            for group, parts in found.items()
        }
        return _outcome("random", GENERATED, count, scores)

    def _probes_of_strangers(self, target: Target) -> Probes | None:
        """Returns a photo of each stranger, treated as the person's photos are."""
        if self._strangers is None:
            return None
        if len(target.tests):
            return Probes(self._strangers.images, self._strangers.faces)
        return self._photographed_strangers

    def _encoded(self, photos: np.ndarray) -> np.ndarray:
        assert self._encode is not None
        parts = np.split(photos, len(photos))
        return np.concatenate([np.asarray(self._encode(photo)) for photo in parts])

    def _mean_code(self) -> np.ndarray:
        shape = (1, self._generator.num_ws, self._generator.w_dim)
        return np.broadcast_to(self._w_avg, shape)

    def _show(self, generator: Generator, w: np.ndarray, faces: np.ndarray) -> Scores:
        """Returns the similarity of each code's image and its face."""
        made = self._scorer.see(self._images(generator, w))
        return scoring.paired(made, self._scorer.see(faces))


def _outcome(
    attack: str, compared: str, budget: int | None, scores: Mapping[str, Scores]
) -> Outcome:
    return Outcome(
        attack,
        LEVEL_OF[attack],
        compared,
        budget,
        {
            group: {judge: _listed(values) for judge, values in by_judge.items()}
            for group, by_judge in scores.items()
        },
    )


def _listed(values: np.ndarray) -> list[float | None]:
    """Returns similarities in a form that JSON has."""
    return [None if np.isnan(x) else round(float(x), 4) for x in values]
