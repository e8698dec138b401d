"""A run's report: one HTML file that opens offline."""

import base64
import functools
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from guide_jax.attacks.verdict import GENERATED, LEVELS, Outcome, in_words
from guide_jax.reports import plots
from guide_jax.reports.columns import Cells, Column, cells
from guide_jax.reports.pictures import TEST_LABELS, label_of, stored_images
from guide_jax.reports.summary import Done
from guide_jax.reports.terminal import summary_rows
from guide_jax.storage.run_folder import ATTACKS, METRICS, PICTURES, SIDES, WORST

LARGE, THUMBNAIL = 224, 96  # sides in pixels: the person, the others
# Attacks whose best image is marked among random people, and their labels.
MARKED = {"replay": "own code", "line": "line", "neighbourhood": "neighbourhood"}
TEMPLATE = "report.html.jinja"


def render_report(summary: Mapping[str, Any], done: Sequence[Done], name: str) -> str:
    """Returns the report's HTML.

    Args:
        summary: the run's results, from `summary.summarise`.
        done: the people, in the order of `summary["people"]`.
        name: the run's name.
    """
    rows = [cells(entry) for entry in summary["people"]]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        name=name,
        summary=summary,
        means=summary_rows(summary),
        columns=columns,
        rows=[[_text(row, column) for column in columns] for row in rows],
        people=[_person(entry, folder) for entry, folder in done],
        inputs=_inputs(summary),
        config=json.dumps(summary["config"], indent=2),
        levels=LEVELS,
        large=LARGE,
        thumbnail=THUMBNAIL,
    )


def _text(row: Cells, column: Column) -> str:
    """Returns a cell's text; "-" for a measure that does not apply to the person."""
    return column.measure.text(row[column]) if column in row else "-"


def _person(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    metrics, attacks = folder / METRICS, folder / ATTACKS
    plotted = [_curve(metrics, metrics.stat().st_mtime_ns)] if metrics.exists() else []
    if "verdict" in entry and attacks.exists():
        plotted = _attack_plots(attacks, attacks.stat().st_mtime_ns) + plotted
    shown = _embedded(folder / PICTURES, LARGE)
    return {
        "entry": entry,
        "headline": _headline(entry),
        "shown": shown[: _first_test(shown)],
        "tests": shown[_first_test(shown) :],
        "sides": _pairs(folder / PICTURES / SIDES),
        "worst": _worst(entry, folder),
        "plots": [svg for svg in plotted if svg],
    }


def _headline(entry: Mapping[str, Any]) -> str:
    """Returns a person's verdict in words."""
    if "verdict" in entry:
        return f"Verdict: {in_words(entry['verdict'])}."
    return "No verdict yet: run --mode=attack to try to get this person back."


def _first_test(shown: Sequence[tuple[str, str]]) -> int:
    """Returns where the test photos' images start."""
    labels = [label for label, _ in shown]
    return labels.index(TEST_LABELS[0]) if TEST_LABELS[0] in labels else len(labels)


def _embedded(folder: Path, side: int) -> list[tuple[str, str]]:
    """Returns the label and the JPEG in base64 of each image in a folder."""
    return [
        (label_of(path), _thumbnail(path, side, path.stat().st_mtime_ns))
        for path in stored_images(folder)
    ]


def _worst(entry: Mapping[str, Any], folder: Path) -> list[tuple[str, str, str]]:
    """Returns the least kept people: similarity, and images before and after."""
    values, pairs = entry.get("worst_others", []), _pairs(folder / PICTURES / WORST)
    return [
        ("no face" if value is None else f"{value:.2f}", before, after)
        for value, (before, after) in zip(values, pairs, strict=False)
    ]


def _pairs(folder: Path) -> list[tuple[str, str]]:
    """Returns the thumbnails that `pictures.save_pairs` wrote, before and after."""
    images = [data for _, data in _embedded(folder, THUMBNAIL)]
    return list(zip(images[::2], images[1::2], strict=False))


def _inputs(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns what each file that went in is for, its name and its hash, once."""
    rows: list[tuple[str, str, str]] = []
    for entry in summary["people"]:
        found = entry.get("inputs", {})  # not in results of earlier versions
        for role, file in found.get("networks", {}).items():
            if "sha256" in file:
                rows.append((role, file["path"], file["sha256"]))
        for part in ("photos", "judges", "attacks"):
            rows += [(part, *item) for item in found.get(part, {}).items()]
    return list(dict.fromkeys(rows))


@functools.cache
def _attack_plots(path: Path, _changed: int) -> list[str]:
    """Returns the plots of an attacks.json file."""
    attacks = json.loads(path.read_text())
    outcomes = [Outcome(**x) for x in attacks["outcomes"]]
    judge = next(iter(attacks["crowd"]))
    best = {
        label: max(values)
        for name, label in MARKED.items()
        for x in outcomes
        if x.attack == name
        and x.compared == GENERATED
        and (values := list(x.values("unlearned", judge)))
    }
    threshold = attacks["verdict"]["thresholds"][GENERATED][judge]["value"]
    others = [x for x in attacks["crowd"][judge] if x is not None]
    return [
        plots.crowd(others, best, threshold, judge),
        plots.attack_curves(outcomes, judge),
    ]


# Cached, because a run rewrites its report after each person.
@functools.cache
def _thumbnail(path: Path, side: int, _changed: int) -> str:
    """Returns an image file as a small JPEG in base64."""
    size = side, side
    with Image.open(path) as image:
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return base64.b64encode(out.getvalue()).decode()


@functools.cache
def _curve(path: Path, _changed: int) -> str:
    return plots.loss_curve(path)
