"""A run's results, as dicts and as CSV, with the same schema for one person and many.

`results.json`, in a person's folder and in the run's, contains:

    schema      version of this schema
    people      an entry for each person: person, title, measures, judges (each further
                judge's measures), inversion (photos only; its "judges" are the further
                judges), notes, calibration (each judge's error rates on real
                photos), worst_others (the least kept people's similarities), ids,
                seconds; verdict after attacks (see attacks/verdict.py)
    mean        measures, judges and inversion, averaged over the people
    deviation   their sample standard deviations, for values from two or more people
    id_targets  mean identity similarity of different people's targets, or null
    failed      title and fault of each person who failed
    left_out    a line for each file in the folder of photos that no person has
    config      settings of the training and of the measures
    versions    versions of packages, Python and this code (a hash of its source), the
                kind of device, and the system

An entry's "inputs" are the SHA-256 of all files that went in: "networks" by role, with
the hash of the weights that `ids` depend on, "photos", "judges" (the external ones')
and, after attacks, "attacks". "trained_with" are the versions of the training.
"""

import csv
import importlib.metadata
import io
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from guide_jax.metrics.judges import Faces, strangers
from guide_jax.reports.columns import Column, cells
from guide_jax.storage.fingerprint import SCHEMA
from guide_jax.storage.origin import code_hash
from guide_jax.storage.run_folder import EMBEDDINGS

PACKAGES = (
    "guide-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy",
    "pillow",
)  # fmt: skip


class Done(NamedTuple):
    """A person who was forgotten: the entry in `people`, and the person's folder."""

    entry: Mapping[str, Any]
    folder: Path


class Failed(NamedTuple):
    """A person who failed: the title, and the reason in one line."""

    title: str
    fault: str


def _nested(values: Mapping[Column, float]) -> dict[str, Any]:
    """Returns values in the nested form that `cells` reads."""
    nested: dict[str, Any] = {"measures": {}, "judges": {}, "inversion": {}}
    for column, value in values.items():
        part = nested["inversion"] if column.inversion else nested
        if column.judge:
            by_judge = part.setdefault("judges", {})
            by_judge.setdefault(column.judge, {})[column.name] = value
        elif column.inversion:
            part[column.name] = value
        else:
            nested["measures"][column.name] = value
    return nested


def summarise(
    done: Sequence[Done],
    failed: Sequence[Failed],
    config: Mapping[str, Any],
    left_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns a run's results, JSON-able, in the schema of this module's docstring.

    Args:
        done: the people who were forgotten, in the run's order.
        failed: the people who failed, in the run's order.
        config: all config fields, nested.
        left_out: a line for each file that was given but is not used.
    """
    rows = [cells(entry) for entry, _ in done]
    columns = dict.fromkeys(column for row in rows for column in row)
    found: dict[Column, list[float]] = {}
    for column in columns:
        values = [row.get(column) for row in rows]
        if known := [float(value) for value in values if value is not None]:
            found[column] = known
    return {
        "schema": SCHEMA,
        "people": [dict(entry) for entry, _ in done],
        "mean": _nested({c: float(np.mean(x)) for c, x in found.items()}),
        "deviation": _nested(
            {c: float(np.std(x, ddof=1)) for c, x in found.items() if len(x) > 1}
        ),
        "id_targets": _similarity_of_targets([folder for _, folder in done]),
        "failed": [fault._asdict() for fault in failed],
        "left_out": list(left_out),
        "config": json.loads(json.dumps(config)),  # tuples become lists, as when read
        "versions": versions(),
    }


def to_csv(summary: Mapping[str, Any]) -> str:
    """Returns a CSV table with a row for each person; missing values are empty cells.

    It contains no times, so the same run gives the same text.
    """
    rows = [(entry, cells(entry)) for entry in summary["people"]]
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["person", "title", *(c.label for c in columns), "fault"])
    for entry, row in rows:
        values = [row.get(column) for column in columns]
        texts = [f"{v:.6f}" if isinstance(v, float) else v for v in values]
        writer.writerow([entry["person"], entry["title"], *texts, ""])
    for fault in summary["failed"]:
        blank = [""] * len(columns)
        writer.writerow(["", fault["title"], *blank, fault["fault"]])
    return out.getvalue()


def versions() -> dict[str, str]:
    """Returns versions of Python, packages and this code, the device and the system."""
    found = {
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "system": platform.platform(),
        "code": code_hash(),
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # running from a clone
            found[package] = "not installed"
    return found


def _similarity_of_targets(folders: Sequence[Path]) -> float | None:
    """Returns the mean identity similarity of different people's targets."""
    targets = []
    for folder in folders:
        with np.load(folder / EMBEDDINGS) as archive:
            if "target" in archive.files:
                targets.append(archive["target"])
                floor = float(archive["floor"])
    if len(targets) < 2:
        return None
    found = np.ones(len(targets), bool)
    return float(strangers(Faces(np.array(targets), found, floor)).mean())
