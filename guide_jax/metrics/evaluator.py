"""What was forgotten and what was kept: the paper's measures, and other people's fate.

The paper's are ID, ID_others (other photos of the person), FID_pre and delta FID_real
(section 4.1). Beside them stands what became of other people: their identity and LPIPS.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from guide_jax.metrics.identity import (
    Faces,
    Judge,
    in_batches,
    joined,
    similarity,
    strangers,
)

BATCH = 10  # pictures in one jitted pass
LPIPS_PIXELS = 10 * 256 * 256  # in one pass of LPIPS

MEASURES = {
    "id": "identity similarity of the person before and after (low: forgotten)",
    "id_others": "the same of other photos of the person (low: forgotten)",
    "id_strangers": "the same of two different people, for comparison",
    "lpips_person": "LPIPS of the person's picture before and after",
    "fid_pre": "FID between the generators before and after (low: kept)",
    "delta_fid_real": "what the FID to real photos grew by (low: kept)",
    "id_kept": "mean identity similarity of other people to themselves (high: kept)",
    "id_kept_worst": "the lowest of them",
    "lpips_kept": "mean LPIPS of other people to themselves (low: kept)",
    "people_kept": "how many other people were looked at",
    "fid_samples": "how many pictures of either generator FID was taken of",
    "no_face": "pictures in which no face was found; they count for no similarity",
}
COUNTS = "people_kept", "fid_samples", "no_face"


class View(NamedTuple):
    """How a generator shows some latents.

    Attributes:
        images: `[N, H, W, 3]` float32.
        faces: each judge's view of them, by the judge's name.
    """

    images: np.ndarray
    faces: dict[str, Faces]


class Kept(NamedTuple):
    """Other people, by the original generator and by the one that forgot.

    Attributes:
        before: each judge's view, by its name.
        after: the same latents'.
        lpips: of each pair of pictures `[N]`.
        shown: the first pictures before and after, each `[n, H, W, 3]`.
    """

    before: dict[str, Faces]
    after: dict[str, Faces]
    lpips: np.ndarray
    shown: tuple[np.ndarray, np.ndarray]


class Evaluator:
    """Compares generators with the one that they were made from.

    The passes are compiled once, for however many generators and people.
    """

    def __init__(
        self,
        generator: nnx.Module,
        lpips: nnx.Module,
        judges: Mapping[str, Judge],
        batch: int = BATCH,
    ):
        """Prepares the passes.

        Args:
            generator: the original.
            lpips: network.
            judges: by name, none of them in the loss; the first one's measures have no
                name appended.
            batch: pictures in one pass.
        """
        self._original, self._judges, self._batch = generator, dict(judges), batch
        graph = nnx.split(generator.synthesis)[0]
        lpips_graph, self._lpips = nnx.split(lpips)
        self._before: dict[bytes, dict[str, Faces]] = {}

        @jax.jit
        def show(synthesis, w):
            return nnx.merge(graph, synthesis)(w)[0]

        @jax.jit
        def distance(lpips_state, a, b):
            return nnx.merge(lpips_graph, lpips_state)(a, b)

        self._show, self._distance = show, distance

    def show(self, generator: nnx.Module, w: np.ndarray) -> np.ndarray:
        """Returns a generator's pictures `[N, H, W, 3]` of latents `[N, L, D]`."""
        program = functools.partial(self._show, nnx.state(generator.synthesis))
        return in_batches(program, self._batch, np.asarray(w))

    def judge(self, images: np.ndarray) -> dict[str, Faces]:
        """Returns each judge's view of pictures `[N, H, W, 3]`."""
        return {name: judge(images) for name, judge in self._judges.items()}

    def faces(self, generator: nnx.Module, w: np.ndarray) -> dict[str, Faces]:
        """As `look`, but keeps no pictures; a batch at a time."""
        parts = np.split(w, range(self._batch, len(w), self._batch))
        seen = [self.judge(self.show(generator, part)) for part in parts]
        return {name: joined([x[name] for x in seen]) for name in self._judges}

    def look(self, generator: nnx.Module, w: np.ndarray) -> View:
        """Shows latents `[N, L, D]` through a generator, and judges the pictures."""
        images = self.show(generator, w)
        return View(images, self.judge(images))

    def lpips(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """LPIPS of image pairs `[N, H, W, 3]`, `[N]`."""
        # Its inner maps take many times a picture's memory.
        H, W = a.shape[1:3]
        size = max(1, min(self._batch, LPIPS_PIXELS // (H * W)))
        program = functools.partial(self._distance, self._lpips)
        return in_batches(program, size, a, b)

    def kept(self, forgetful: nnx.Module, w: np.ndarray, shown: int) -> Kept:
        """Looks at other people through both generators, a batch at a time.

        Args:
            forgetful: the generator that forgot.
            w: codes `[N, L, D]`.
            shown: how many of their pictures to keep.
        """
        w = np.asarray(w)
        before, after, lpips, pictures = [], [], [], []
        for start in range(0, len(w), self._batch):
            part = w[start : start + self._batch]
            a, b = self.show(self._original, part), self.show(forgetful, part)
            before.append(self._judge_once(part, a))
            after.append(self.judge(b))
            lpips.append(self.lpips(a, b))
            keep = max(0, shown - start)
            pictures.append((a[:keep], b[:keep]))
        shown_a, shown_b = map(np.concatenate, zip(*pictures, strict=True))
        return Kept(
            {name: joined([x[name] for x in before]) for name in self._judges},
            {name: joined([x[name] for x in after]) for name in self._judges},
            np.concatenate(lpips),
            (shown_a, shown_b),
        )

    def _judge_once(self, w: np.ndarray, images: np.ndarray) -> dict[str, Faces]:
        """Judges pictures of the original generator, which every person shares."""
        key = w.tobytes()
        if key not in self._before:
            self._before[key] = self.judge(images)
        return self._before[key]

    def compare(
        self,
        kept: Kept,
        person: tuple[View, View],
        tests: tuple[Mapping[str, Faces], Mapping[str, Faces]] | None = None,
    ) -> dict[str, float | int | None]:
        """Measures one unlearning.

        Args:
            kept: other people, before and after.
            person: the forgotten person, before and after.
            tests: the judges' view of other photos of the person, before and after.

        Returns:
            The measures by name, as `MEASURES` explains them; each further judge's have
            its name appended, as in `id_facenet`. None where there was no face.
        """
        found: dict[str, float | int | None] = {}
        own = person[0].faces, person[1].faces
        for i, name in enumerate(self._judges):
            end = f"_{name}" if i else ""
            pairs = [own, (kept.before, kept.after), *([tests] if tests else [])]
            cosines = [similarity(a[name], b[name]) for a, b in pairs]
            found[f"id{end}"], found[f"id_kept{end}"] = map(_mean, cosines[:2])
            if tests:
                found[f"id_others{end}"] = _mean(cosines[2])
            found[f"id_strangers{end}"] = _mean(strangers(kept.before[name]))
            worst = cosines[1]
            found[f"id_kept_worst{end}"] = float(worst.min()) if worst.size else None
            looked_at = [faces[name].found for pair in pairs for faces in pair]
            found[f"no_face{end}"] = int(sum(np.sum(~seen) for seen in looked_at))
        found["lpips_person"] = float(self.lpips(person[0].images, person[1].images)[0])
        found["lpips_kept"] = float(kept.lpips.mean())
        found["people_kept"] = len(kept.lpips)
        return {name: found[name] for name in measures_in(found)}

    def likeness(self, photo: np.ndarray, reconstruction: View) -> dict:
        """Says how like the photo `[1, H, W, 3]` its reconstruction is.

        A bad inversion makes the generator forget somebody else.
        """
        first = next(iter(self._judges))
        cosine = similarity(self.judge(photo)[first], reconstruction.faces[first])
        lpips = self.lpips(photo, reconstruction.images)[0]
        return {"id": _mean(cosine), "lpips": float(lpips)}


def measures_in(results: Mapping) -> list[str]:
    """Returns the names of the measures among results, in the order of `MEASURES`."""
    order = list(MEASURES)
    known = filter(measure_of, results)
    return sorted(known, key=lambda name: order.index(measure_of(name)))


def measure_of(name: str) -> str:
    """Returns which of `MEASURES` a further judge's measure is, "id" of "id_facenet".

    Of a measure it is the name itself, of anything else "".
    """
    known = (k for k in MEASURES if f"{name}_".startswith(f"{k}_"))
    return max(known, key=len, default="")


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
