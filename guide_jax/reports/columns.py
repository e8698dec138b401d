"""The columns of the report, the CSV and the table on the terminal.

They follow the registry, `metrics/measures.py`: a new measure is a new column.
Everything else on the report's page is in `html.py` and `report.html.jinja`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from guide_jax.metrics.measures import INVERSION, MEASURES, Measure


class Column(NamedTuple):
    """A table's column: a measure by a judge, of a person or of an inversion.

    Attributes:
        name: the measure's name.
        judge: the further judge's name, or "" for the first judge.
        inversion: whether the measure compares a photo with its reconstruction.
    """

    name: str
    judge: str = ""
    inversion: bool = False

    @property
    def label(self) -> str:
        """Returns the column's label, such as "id", "facenet.id" or
        "inversion.facenet.id"."""
        groups = ["inversion"] * self.inversion + [self.judge] * bool(self.judge)
        return ".".join([*groups, self.name])

    @property
    def measure(self) -> Measure:
        """Returns the measure's entry in the registry."""
        return (INVERSION if self.inversion else MEASURES)[self.name]

    @property
    def meaning(self) -> str:
        """Returns a description of the column's values."""
        return self.measure.describe(self.judge)


Cells = dict[Column, float | int | None]


def cells(entry: Mapping[str, Any]) -> Cells:
    """Returns the values in an entry of `people`, or in `mean` or `deviation`.

    They are in the registry's order; further judges' values follow the first judge's.
    """
    measures, judges = entry["measures"], entry.get("judges", {})
    found: Cells = {}
    for name in MEASURES:
        if name in measures:
            found[Column(name)] = measures[name]
        for judge, values in judges.items():
            if name in values:
                found[Column(name, judge)] = values[name]
    inversion = dict(entry.get("inversion", {}))
    by_judge = inversion.pop("judges", {})
    for name, value in inversion.items():
        found[Column(name, inversion=True)] = value
    for judge, values in by_judge.items():
        for name, value in values.items():
            found[Column(name, judge, inversion=True)] = value
    return found
