"""The measures of unlearning: what each one means and how it is printed.

ID, ID_others, FID_pre and delta FID_real are the paper's (section 4.1); most of the
rest describe how well other people are kept.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """One measure.

    Attributes:
        name: the name in results.json, the table and the report.
        meaning: a description that ends with the better direction, if there is one.
        decimals: number of decimals to print; None for counts.
        better: "low", "high", or "" for measures without a better direction.
        missing: text to print if there is no value.
        by_judge: whether each judge has its own value.
    """

    name: str
    meaning: str
    decimals: int | None = 3
    better: str = ""
    missing: str = "-"
    by_judge: bool = False

    def text(self, value: float | int | None) -> str:
        """Formats a value."""
        if value is None:
            return self.missing
        return f"{value:g}" if self.decimals is None else f"{value:.{self.decimals}f}"

    def describe(self, judge: str = "") -> str:
        """Returns the meaning, with the judge's name if it is a further judge."""
        return f"{self.meaning}, by {judge}" if judge else self.meaning


def _identity(name: str, meaning: str, better: str = "") -> Measure:
    return Measure(name, meaning, better=better, missing="no face", by_judge=True)


MEASURES = {
    measure.name: measure
    for measure in (
        Measure(
            "level",
            "highest level of attacks, of 5, that it withstands (high: forgotten)",
            decimals=None,
            better="high",
        ),
        _identity(
            "id",
            "identity similarity of the person before and after (low: forgotten)",
            "low",
        ),
        _identity(
            "id_others",
            "the same for other photos of the person (low: forgotten)",
            "low",
        ),
        _identity(
            "id_photo",
            "identity similarity of the person's photos and images after (low:"
            " forgotten)",
            "low",
        ),
        _identity(
            "id_photo_others",
            "the same for other photos of the person (low: forgotten)",
            "low",
        ),
        _identity("id_strangers", "identity similarity of different people"),
        Measure("lpips_person", "LPIPS between the person's images before and after"),
        Measure(
            "lpips_target",
            "LPIPS between the person's image after and the target's (low: learned)",
            better="low",
        ),
        Measure(
            "fid_pre",
            "FID between the generators before and after (low: kept)",
            better="low",
        ),
        Measure(
            "delta_fid_real",
            "increase of the FID to real photos (low: kept)",
            better="low",
        ),
        _identity(
            "id_kept",
            "mean identity similarity of other people before and after (high: kept)",
            "high",
        ),
        _identity("id_kept_worst", "the lowest of these similarities", "high"),
        Measure(
            "lpips_kept",
            "mean LPIPS of other people before and after (low: kept)",
            better="low",
        ),
        Measure("people_kept", "number of other people measured", decimals=None),
        Measure("fid_samples", "number of images per generator for FID", decimals=None),
        Measure(
            "no_face",
            "images without a detected face, which have no similarity",
            decimals=None,
            by_judge=True,
        ),
    )
}
# A measure of the whole run.
ID_TARGETS = Measure(
    "id_targets",
    "mean identity similarity of different people's targets (low: they differ)",
)
# Measures of a photo and its reconstruction.
INVERSION = {
    measure.name: measure
    for measure in (
        _identity("id", "identity similarity of photo and reconstruction", "high"),
        Measure("lpips", "LPIPS between photo and reconstruction", better="low"),
        Measure(
            "from_mean",
            "distance of the photo's code from the mean code (about 1: as far as the"
            " generator's own people)",
        ),
    )
}


def in_order(measures: Mapping[str, Any] | Iterable[str]) -> list[str]:
    """Returns the names in the registry's order.

    Raises:
        KeyError: a name is not registered.
    """
    order = list(MEASURES)
    unknown = [name for name in measures if name not in MEASURES]
    if unknown:
        raise KeyError(f"not in metrics/measures.py: {', '.join(unknown)}")
    return sorted(measures, key=order.index)
