"""Formats measures as lines of text, each with its meaning."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from guide_jax.metrics.measures import ID_TARGETS
from guide_jax.reports.columns import Column, cells

Row = tuple[str, str, str]  # label, value, meaning


def person_table(entry: Mapping[str, Any]) -> str:
    """Returns a table of the measures in a person's entry."""
    return _lines(
        (column.label, column.measure.text(value), column.meaning)
        for column, value in cells(entry).items()
    )


def summary_rows(summary: Mapping[str, Any]) -> list[Row]:
    """Returns label, mean over the people and meaning for each of a run's measures."""
    means, deviations = cells(summary["mean"]), cells(summary["deviation"])
    rows = [
        (column.label, _mean(column, mean, deviations.get(column)), column.meaning)
        for column, mean in means.items()
    ]
    if summary["id_targets"] is not None:
        value = ID_TARGETS.text(summary["id_targets"])
        rows.append((ID_TARGETS.name, value, ID_TARGETS.meaning))
    return rows


def summary_table(summary: Mapping[str, Any]) -> str:
    """Returns a table of the means of several people's measures."""
    return _lines(summary_rows(summary))


def _lines(rows: Iterable[Row]) -> str:
    rows = list(rows)
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    return "\n".join(
        f"  {label:<{widths[0]}}  {value:>{widths[1]}}  {text}"
        for label, value, text in rows
    )


def _mean(column: Column, mean: float | None, deviation: float | None) -> str:
    """Formats a mean, with its deviation unless the measure is a count."""
    if mean is None or column.measure.decimals is None:
        return column.measure.text(mean)
    return plus_minus(mean, deviation)


def plus_minus(mean: float, deviation: float | None) -> str:
    """Formats a mean, as in "0.123 ± 0.045", or "0.123" without a deviation."""
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Formats a mean and, for two or more values, the sample standard deviation."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return plus_minus(float(np.mean(values)), deviation)
