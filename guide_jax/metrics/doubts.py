"""Tells whether a person's photos, and their reconstructions, show one person."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from guide_jax.metrics.calibration import Calibration
from guide_jax.metrics.judges import Faces, similarity


def find_doubts(
    paths: Sequence[Path],
    photos: Faces,
    reconstructions: Faces,
    calibration: Calibration,
    judge: str,
) -> list[str]:
    """Returns a line for each reason to doubt that the right person is forgotten.

    Args:
        paths: the photos' files, the used photos first.
        photos: the judge's embeddings of all photos.
        reconstructions: its embeddings of the used photos' reconstructions.
        calibration: the judge's.
        judge: its name.
    """
    rates = f"by {judge}: {calibration.describe()}"
    lines = []
    own = similarity(_rows(photos, range(len(reconstructions.found))), reconstructions)
    if not own.size or own.mean() < calibration.threshold:
        value = f"similarity {own.mean():.2f}" if own.size else "no face found"
        lines.append(
            f"{paths[0]}: the reconstruction is not this person ({value} {rates})"
        )
    for i, path in enumerate(paths):
        others = [j for j in range(len(paths)) if j != i and photos.found[j]]
        known = similarity(_rows(photos, [i] * len(others)), _rows(photos, others))
        if known.size and known.max() < calibration.threshold:
            lines.append(
                f"{path}: seems to show somebody else than the person's other photos"
                f" (similarity {known.max():.2f} at most, {rates})"
            )
    return lines


def _rows(faces: Faces, rows: Sequence[int]) -> Faces:
    index = np.array(rows, int)
    return Faces(faces.embeddings[index], faces.found[index], faces.floor)
