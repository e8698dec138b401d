"""How close an attack's pictures come to a person, by judges that took no part."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from guide_jax.attacks.copies import grey
from guide_jax.errors import UnlearningError
from guide_jax.faces.variants import ALTERATIONS, variants
from guide_jax.metrics import judges
from guide_jax.metrics.calibration import Calibration
from guide_jax.metrics.judges import Faces, Judge, rescaled

Scores = dict[str, np.ndarray]  # judge's name -> similarities [N]; NaN: no face

CLOSEST_STRANGERS = 0.05  # fraction of different people's pairs above the threshold


class Seen(NamedTuple):
    """Each judge's embeddings of images, in colour and in grey.

    Attributes:
        colour: judge's name -> embeddings.
        grey: the same without colour.
    """

    colour: dict[str, Faces]
    grey: dict[str, Faces]

    def rows(self, index: Sequence[int]) -> "Seen":
        """Returns the embeddings of some of the images."""
        return Seen(
            *({name: _rows(x, index) for name, x in part.items()} for part in self)
        )


class Scorer:
    """Compares images by all judges."""

    def __init__(self, by_name: Mapping[str, Judge]):
        """Keeps the judges, by name."""
        self._judges = dict(by_name)

    def see(self, images: np.ndarray) -> Seen:
        """Embeds images `[N, H, W, 3]`.

        Raises:
            UnlearningError: an image is not finite. Judges would find no face in it,
                and the attack would seem to have failed.
        """
        if not np.isfinite(images).all():
            raise UnlearningError(
                "an attacked generator's images are not finite, so there is no verdict;"
                " try a lower config.attack.learning_rate"
            )
        colourless = grey(np.asarray(images))
        return Seen(
            {name: judge(images) for name, judge in self._judges.items()},
            {name: judge(colourless) for name, judge in self._judges.items()},
        )


def closest(images: Seen, references: Seen) -> Scores:
    """Returns each image's similarity to the closest of the references.

    A similarity is the higher one of those in colour and in grey, so that a change of
    tint never counts as forgetting.
    """
    return {name: _best(x) for name, x in _similarities(images, references).items()}


def paired(images: Seen, references: Seen) -> Scores:
    """Returns the similarity of each image and the reference with the same index."""
    both = [
        {name: judges.paired(x[name], y[name]) for name in x}
        for x, y in zip(images, references, strict=True)
    ]
    return _higher(both)


def _similarities(a: Seen, b: Seen) -> Scores:
    """Returns judge -> similarities `[N, M]` of all pairs; NaN without a face."""
    both = [
        {name: _matrix(x[name], y[name]) for name in x}
        for x, y in zip(a, b, strict=True)
    ]
    return _higher(both)


def _higher(both: Sequence[Scores]) -> Scores:
    """Returns the higher similarity of those in colour and in grey."""
    return {name: np.fmax(*(part[name] for part in both)) for name in both[0]}


def _matrix(a: Faces, b: Faces) -> np.ndarray:
    values = rescaled(a.embeddings @ b.embeddings.T, a.floor)
    return np.where(a.found[:, None] & b.found[None], values, np.nan)


def _best(matrix: np.ndarray) -> np.ndarray:
    """Returns each row's largest value; NaN if it has none."""
    best = np.where(np.isnan(matrix), -np.inf, matrix).max(axis=1)
    return np.where(np.isfinite(best), best, np.nan)


def _rows(faces: Faces, rows: Sequence[int]) -> Faces:
    index = np.array(rows, int)
    return Faces(faces.embeddings[index], faces.found[index], faces.floor)


# Thresholds ---------------------------------------------------------------------------


class Threshold(NamedTuple):
    """A similarity above which two images count as the same person.

    Attributes:
        value: the similarity.
        false: fraction of different people's pairs above it.
        missed: fraction of the same person's pairs that are not above it.
        strangers: different people's mean similarity.
    """

    value: float
    false: float
    missed: float
    strangers: float


def thresholds(
    scorer: Scorer, people: Seen, images: np.ndarray
) -> dict[str, Threshold]:
    """Calibrates each judge on generated faces.

    Pairs of the same person are a face and its altered copies.

    Args:
        scorer: holds the judges.
        people: embeddings of random people's images.
        images: these images `[N, H, W, 3]`.
    """
    count = len(ALTERATIONS)
    copies = scorer.see(np.concatenate([variants(x[None], count) for x in images]))
    owners = people.rows(np.repeat(np.arange(len(images)), count).tolist())
    same = paired(copies, owners)
    found = {}
    for name, matrix in _similarities(people, people).items():
        different = matrix[np.triu_indices(len(matrix), 1)]
        value = np.nanquantile(different, 1 - CLOSEST_STRANGERS)
        found[name] = Threshold(
            float(value),
            float(np.nanmean(different > value)),
            float(np.nanmean(same[name] <= value)),
            float(np.nanmean(different)),
        )
    return found


def for_person(threshold: Threshold, others: np.ndarray) -> Threshold:
    """Raises a threshold for a person whom many resemble.

    Args:
        threshold: a judge's, on generated faces.
        others: random people's similarities to the person; NaN without a face.
    """
    closest_others = float(np.nanquantile(others, 1 - CLOSEST_STRANGERS))
    return threshold._replace(value=max(threshold.value, closest_others))


def of_photos(calibration: Calibration, strangers: float) -> Threshold:
    """Returns a judge's threshold on real photos."""
    return Threshold(calibration.threshold, 0.01, calibration.missed, strangers)
