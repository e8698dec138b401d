"""Erases a person from all of a generator's codes, by linear algebra.

A projection takes a few directions out of every code, so that the generator's range no
longer has them: however an attacker chooses a code, nothing of these directions is in
what the generator reads. This is linear concept erasure, with a person as the concept
(LEACE, arXiv 2306.03819, is the projection along the covariance). The first direction
leads from the mean code to the person's codes. Further ones are adversarial, as in
R-LACE (arXiv 2201.12091): a search for the person's photos in the generator that was
projected so far shows where else the person is.

A projected code of the person shows somebody near the mean face. A replacement is
therefore added, in proportion to the person's component, which other people hardly have
by Fisher's discriminant.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import nnx

from guide_jax.config_types import Erase
from guide_jax.console import Console
from guide_jax.models.edited import edited
from guide_jax.models.generator import Generator, mean_style
from guide_jax.search import Search

DISCRIMINANT = 0.02  # shrinkage of the replacement's discriminant
FALSE_ACCEPTS = 0.05  # of random pairs that pass as one person
FURTHER = (1.0, 1.25, 1.5, 1.75, 2.0)  # lengths that are tried, relative to the limit

Identities = Callable[[np.ndarray], np.ndarray]  # codes [N, L, D] -> embeddings [N, E]


class Eraser:
    """Computes how codes must change so that a person is erased."""

    def __init__(
        self,
        generator: Generator,
        search: Search,
        settings: Erase,
        people: np.ndarray,
        candidates: np.ndarray,
        identities: Identities,
        console: Console,
    ):
        """Prepares the covariance.

        Args:
            generator: the original generator.
            search: searches in generators of its architecture.
            settings: of the erasure.
            people: random people `[M, L, D]`, with equal styles in all layers.
            candidates: codes of possible replacements `[C, L, D]`.
            identities: returns the loss's identity embeddings of codes' images.
            console: shows the progress of the search.
        """
        self._generator, self._search = generator, search
        self._settings, self._console = settings, console
        self._candidates, self._identities = candidates, identities
        self._w_avg = mean_style(generator).astype(np.float64)
        styles = np.float64(people[:, 0]) - self._w_avg
        self._covariance = styles.T @ styles / len(styles)

    def __call__(
        self,
        groups: Sequence[np.ndarray],
        photos: np.ndarray,
        starts: np.ndarray,
    ) -> np.ndarray:
        """Returns changes `[L, D, D]`, as `models.edited.edited` takes them.

        The replacement grows until the first group's codes no longer pass as the person
        on average. Whoever resembles the mean face needs more.

        Args:
            groups: the person's codes, `[P_k, L, D]` each. Each group's mean moves by
                the replacement, which is chosen for the first one.
            photos: images of the person `[N, H, W, 3]` that are searched for.
            starts: codes `[N, L, D]` from which the search starts.
        """
        offsets = [np.float64(x).mean(axis=0) - self._w_avg for x in groups]
        directions = np.sum([x / np.linalg.norm(x) for x in offsets], axis=0)[None]
        for _ in range(self._settings.rounds):
            kept = self.projection(directions)
            left = self._left(kept, photos, starts)
            directions = np.concatenate([directions, left[None]])
        kept = self.projection(directions)
        replacement = self._replacement(offsets[0], kept)
        identity, own = np.eye(kept.shape[1]), self._identities(groups[0])
        for factor in FURTHER:
            towards = self._towards(np.stack(offsets), factor * replacement)
            changes = (identity + towards) @ kept - identity
            faces = self._identities(self.moved(groups[0], changes))
            if np.mean(np.sum(own * faces, axis=1)) <= self._same_person:
                break
        return changes

    def moved(self, codes: np.ndarray, changes: np.ndarray) -> np.ndarray:
        """Returns what codes `[N, L, D]` are read as."""
        offsets = codes - self._w_avg
        return (codes + np.einsum("nld,lde->nle", offsets, changes)).astype(np.float32)

    def projection(self, directions: np.ndarray) -> np.ndarray:
        """Returns projections `[L, D, D]` that take directions `[K, L, D]` out.

        A code's offset from the mean code is multiplied by its layer's. What is taken
        out is measured by the inverse covariance, so that people who differ from the
        mean code elsewhere lose little.
        """
        kept = []
        for rows in directions.swapaxes(0, 1):  # [K, D]
            measures = self._discounted(rows.T, self._settings.shrinkage)  # [D, K]
            along = np.linalg.pinv(rows @ measures)  # two may be the same
            kept.append(np.eye(rows.shape[1]) - measures @ along @ rows)
        return np.stack(kept)

    def _discounted(self, columns: np.ndarray, shrinkage: float) -> np.ndarray:
        """Divides columns `[D, K]` by the people's covariance, shrunk."""
        largest = np.linalg.eigvalsh(self._covariance)[-1]
        shrunk = self._covariance + shrinkage * largest * np.eye(len(columns))
        return np.linalg.solve(shrunk, columns)

    def _left(
        self, kept: np.ndarray, photos: np.ndarray, starts: np.ndarray
    ) -> np.ndarray:
        """Returns the offset `[L, D]` at which a search in W still finds the person."""
        attacked: Any = nnx.clone(self._generator)
        changes = kept - np.eye(kept.shape[1])
        attacked.synthesis = edited(attacked.synthesis, changes, self._w_avg)
        steps = self._settings.steps
        first = starts.mean(axis=1, keepdims=True)
        with self._console.bar("searching", "step", steps * len(photos)) as bar:
            reached = self._search(attacked, photos, first, (steps,), bar=bar)
        offsets = np.float64(reached[steps].codes) - self._w_avg
        return np.einsum("nld,lde->nle", offsets, kept).mean(axis=0)

    def _towards(self, offsets: np.ndarray, replacement: np.ndarray) -> np.ndarray:
        """Returns changes `[L, D, D]` that move offsets `[K, L, D]` by the replacement.

        Others move in proportion to their component by the discriminant.
        """
        changes = []
        for rows, moved in zip(offsets.swapaxes(0, 1), replacement, strict=True):
            measures = self._discounted(rows.T, DISCRIMINANT)  # [D, K]
            both = measures @ np.linalg.pinv(rows @ measures).sum(axis=1)
            changes.append(both[:, None] * moved[None])
        return np.stack(changes)

    @functools.cached_property
    def _same_person(self) -> float:
        """The similarity that few pairs of random people exceed."""
        embeddings = self._identities(self._candidates)
        cosines = embeddings @ embeddings.T
        pairs = cosines[np.triu_indices(len(cosines), 1)]
        return float(np.quantile(pairs, 1 - FALSE_ACCEPTS))

    def _replacement(self, own: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Returns the offset `[L, D]` that makes the person least similar.

        The loss's identity encoder compares, not a judge.
        """
        offsets = np.einsum("nld,lde->nle", self._candidates - self._w_avg, kept)
        lengths = np.linalg.norm(offsets, axis=(1, 2), keepdims=True)
        offsets *= self._settings.limit / lengths
        shown = np.einsum("ld,lde->le", own, kept)[None] + offsets
        codes = np.concatenate([own[None], shown]) + self._w_avg
        face, *others = self._identities(codes.astype(np.float32))
        return offsets[np.argmin(np.stack(others) @ face)]
