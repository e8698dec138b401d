"""Sums up a run over people: rows, means and deviations, as a dict and as CSV."""

import csv
import importlib.metadata
import io
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from guide_jax.metrics.evaluator import measures_in

PACKAGES = "guide-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"


class Done(NamedTuple):
    """A person who was forgotten: what `results.json` holds, and the folder of it."""

    results: Mapping
    folder: Path


class Failed(NamedTuple):
    """A person who could not be: for captions, and why in one line."""

    title: str
    fault: str


def summarise(done: Sequence[Done], failed: Sequence[Failed], config: Mapping) -> dict:
    """Sums up a run.

    Args:
        done: in the run's order.
        failed: likewise.
        config: the run's.

    Returns:
        "mean" and "deviation" (of the sample) of each measure over the people where it
        was found; "id_targets", the mean identity similarity of different people's
        targets (None below two); "people", a row of measures each; "failed"; "config"
        and "versions". Fit for JSON.
    """
    rows = [_row(results) for results, _ in done]
    names = dict.fromkeys(name for row in rows for name in list(row)[2:])
    found = {n: [row[n] for row in rows if row.get(n) is not None] for n in names}
    found = {name: values for name, values in found.items() if values}
    return {
        "mean": {name: float(np.mean(x)) for name, x in found.items()},
        "deviation": {
            name: float(np.std(x, ddof=1)) for name, x in found.items() if len(x) > 1
        },
        "id_targets": _likeness_of_targets([folder for _, folder in done]),
        "people": rows,
        "failed": [fault._asdict() for fault in failed],
        "config": json.loads(json.dumps(config)),  # with lists, as it is read again
        "versions": versions(),
    }


def to_csv(summary: Mapping) -> str:
    """Returns the rows as CSV, with a header; an empty cell is a measure not found.

    It holds no times: the same run gives the same text.
    """
    rows = summary["people"]
    names = dict.fromkeys(["person", "title", *(name for row in rows for name in row)])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, "fault"])
    for row in rows:
        cells = [row.get(name) for name in names]
        cells = [f"{c:.6f}" if isinstance(c, float) else c for c in cells]
        writer.writerow([*cells, ""])
    for fault in summary["failed"]:
        blank = [""] * (len(names) - 2)
        writer.writerow(["", fault["title"], *blank, fault["fault"]])
    return out.getvalue()


def versions() -> dict[str, str]:
    """Returns what the run was made with: packages, Python, the device."""
    found = {
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run without installing
            found[package] = "not installed"
    return found


def _row(results: Mapping) -> dict:
    row = {name: results[name] for name in ("person", "title")}
    row |= {name: results[name] for name in measures_in(results)}
    inversion = results.get("inversion", {})
    return row | {f"inversion_{name}": value for name, value in inversion.items()}


def _likeness_of_targets(folders: Sequence[Path]) -> float | None:
    """Returns the mean cosine of different people's targets: are they one face?"""
    found = []
    for folder in folders:
        with np.load(folder / "embeddings.npz") as archive:
            found += [archive["target"]] if "target" in archive.files else []
    pairs = np.triu_indices(len(found), 1)
    return (
        float((np.array(found) @ np.array(found).T)[pairs].mean())
        if len(found) > 1
        else None
    )
