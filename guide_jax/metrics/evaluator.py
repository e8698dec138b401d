"""Compares an unlearned generator with the original that it was made from."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from guide_jax.batching import in_batches
from guide_jax.metrics.judges import Faces, Judge, joined, similarity, strangers
from guide_jax.metrics.measures import in_order
from guide_jax.models.generator import Generator, ImagePass, views_to_judge
from guide_jax.models.network import jitted

BATCH = 10  # images in one pass
LPIPS_PIXELS = 10 * 256 * 256  # pixels in one pass of LPIPS

Measured = dict[str, float | int | None]


class Judged(NamedTuple):
    """A generator's images of some latents, and each judge's embeddings of them.

    Attributes:
        images: `[N, H, W, 3]` float32.
        faces: judge's name -> embeddings.
        turned: judge's name -> embeddings of a 3D generator's images from all sides
            that it is judged from, V rows for each latent; None in 2D.
        sides: the first latent's images from these sides, `[V, H, W, 3]`; None in 2D.
    """

    images: np.ndarray
    faces: dict[str, Faces]
    turned: dict[str, Faces] | None = None
    sides: np.ndarray | None = None

    @property
    def views(self) -> dict[str, Faces]:
        """The embeddings from all sides, of which a 2D generator has one."""
        return self.turned or self.faces


class Kept(NamedTuple):
    """Comparison of other people's images from the original and unlearned generators.

    Attributes:
        before: judge's name -> embeddings of the original's images.
        after: the same for the unlearned generator's images of the same latents.
        lpips: LPIPS of each pair of images, `[N]`.
        shown: the first images before and after, each `[n, H, W, 3]`.
    """

    before: dict[str, Faces]
    after: dict[str, Faces]
    lpips: np.ndarray
    shown: tuple[np.ndarray, np.ndarray]


class Evaluator:
    """Compares unlearned generators with their original; passes are compiled once."""

    def __init__(
        self,
        generator: Generator,
        lpips: nnx.Module,
        judges: Mapping[str, Judge],
        batch: int = BATCH,
        *,
        random_noise: bool = False,
    ):
        """Prepares the passes.

        Args:
            generator: the original generator.
            lpips: the LPIPS network.
            judges: name -> judge. The first judge gives the main measures; further
                judges' measures are reported under their names.
            batch: images in one pass.
            random_noise: see `ImagePass`.
        """
        self._original, self._judges, self._batch = generator, dict(judges), batch
        self.images = ImagePass(generator, batch, random_noise)
        self._lpips = jitted(lpips, lambda lpips, a, b: lpips(a, b))
        self._before: dict[bytes, dict[str, Faces]] = {}

    def judge(self, images: np.ndarray) -> dict[str, Faces]:
        """Returns each judge's embeddings of images `[N, H, W, 3]`."""
        return {name: judge(images) for name, judge in self._judges.items()}

    def judged(self, generator: Generator, w: np.ndarray) -> Judged:
        """Generates images of latents `[N, L, D]` and judges them."""
        images = self.images(generator, w)
        faces, view = self.judge(images), views_to_judge(generator)
        if not view:
            return Judged(images, faces)
        V = len(next(iter(view.values())))
        rows: dict[str, Any] = {
            name: np.concatenate([x] * len(w)) for name, x in view.items()
        }
        turned = self.images(generator, np.repeat(w, V, axis=0), **rows)
        return Judged(images, faces, self.judge(turned), turned[:V])

    def lpips(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Returns the LPIPS `[N]` of image pairs `[N, H, W, 3]`."""
        # Feature maps take many times an image's memory, so large images need a smaller
        # batch.
        H, W = a.shape[1:3]
        size = max(1, min(self._batch, LPIPS_PIXELS // (H * W)))
        return in_batches(self._lpips, size, a, b)

    def kept(self, unlearned: Generator, w: np.ndarray, shown: int) -> Kept:
        """Judges both generators' images of other people, one batch at a time.

        Args:
            unlearned: the generator to measure.
            w: the other people's codes `[N, L, D]`.
            shown: number of images to keep.
        """
        w = np.asarray(w)
        before, after, lpips, images = [], [], [], []
        for start in range(0, len(w), self._batch):
            part = w[start : start + self._batch]
            a, b = self.images(self._original, part), self.images(unlearned, part)
            before.append(self._judge_original(part, a))
            after.append(self.judge(b))
            lpips.append(self.lpips(a, b))
            keep = max(0, shown - start)
            images.append((a[:keep], b[:keep]))
        shown_a, shown_b = map(np.concatenate, zip(*images, strict=True))
        return Kept(
            {name: joined([x[name] for x in before]) for name in self._judges},
            {name: joined([x[name] for x in after]) for name in self._judges},
            np.concatenate(lpips),
            (shown_a, shown_b),
        )

    def _judge_original(self, w: np.ndarray, images: np.ndarray) -> dict[str, Faces]:
        """Judges the original's images, caching the result for later calls."""
        key = w.tobytes()
        if key not in self._before:
            self._before[key] = self.judge(images)
        return self._before[key]

    def compare(
        self,
        kept: Kept,
        person: tuple[Judged, Judged],
        further: Mapping[str, tuple[Mapping[str, Faces], Mapping[str, Faces]]]
        | None = None,
    ) -> dict[str, Any]:
        """Computes the measures of one unlearned generator.

        Args:
            kept: other people, before and after.
            person: the forgotten person, before and after.
            further: name of a further measure -> the embeddings that it compares.

        Returns:
            "measures" (by the names in `metrics/measures.py`) and "judges" (each
            further judge's measures, by the judge's name). A value is None if no face
            was found.
        """
        own = person[0].views, person[1].views
        pairs: dict[str, tuple[Mapping[str, Faces], Mapping[str, Faces]]]
        pairs = {"id": own, "id_kept": (kept.before, kept.after)} | dict(further or {})
        first, others = self._for_judges(
            lambda name: self._by_judge(name, pairs, kept.before[name])
        )
        first["lpips_person"] = float(
            self.lpips(person[0].images, person[1].images).mean()
        )
        first["lpips_kept"] = float(kept.lpips.mean())
        first["people_kept"] = len(kept.lpips)
        return {
            "measures": _in_order(first),
            "judges": {name: _in_order(found) for name, found in others.items()},
        }

    def _for_judges(
        self, measure: Callable[[str], Measured]
    ) -> tuple[Measured, dict[str, Measured]]:
        """Returns the first judge's measures, and further judges' by their names."""
        first, *further = self._judges
        return measure(first), {name: measure(name) for name in further}

    @staticmethod
    def _by_judge(name: str, pairs: Mapping, before: Faces) -> Measured:
        cosines = {key: similarity(a[name], b[name]) for key, (a, b) in pairs.items()}
        found: Measured = {key: _mean(values) for key, values in cosines.items()}
        found["id_strangers"] = _mean(strangers(before))
        worst = cosines["id_kept"]
        found["id_kept_worst"] = float(worst.min()) if worst.size else None
        # Several measures may compare the same images, which count once.
        judged = {id(x[name]): x[name] for pair in pairs.values() for x in pair}
        found["no_face"] = int(sum(np.sum(~faces.found) for faces in judged.values()))
        return found

    def inversion(self, photos: Judged, reconstructions: Judged) -> dict[str, Any]:
        """Compares photos with their reconstructions.

        After a bad inversion, the generator forgets a different person.

        Returns:
            "id" by the first judge, "lpips", and "judges", the further judges' "id".
        """

        def identity(name: str) -> Measured:
            values = similarity(photos.faces[name], reconstructions.faces[name])
            return {"id": _mean(values)}

        first, others = self._for_judges(identity)
        lpips = self.lpips(photos.images, reconstructions.images).mean()
        return {**first, "lpips": float(lpips), "judges": others}


def _in_order(measures: Measured) -> Measured:
    return {name: measures[name] for name in in_order(measures)}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
