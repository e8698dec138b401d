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

from guide_jax.reports import plots
from guide_jax.reports.columns import Cells, Column, cells
from guide_jax.reports.pictures import label_of, stored_images
from guide_jax.reports.summary import Done
from guide_jax.reports.terminal import summary_rows
from guide_jax.storage.run_folder import METRICS, PICTURES

THUMBNAIL = 144  # side in pixels
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
        config=json.dumps(summary["config"], indent=2),
        thumbnail=THUMBNAIL,
    )


def _text(row: Cells, column: Column) -> str:
    """Returns a cell's text; "-" for a measure that does not apply to the person."""
    return column.measure.text(row[column]) if column in row else "-"


def _person(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    images = stored_images(folder / PICTURES)
    metrics = folder / METRICS
    curve = _curve(metrics, metrics.stat().st_mtime_ns) if metrics.exists() else ""
    return {
        "entry": entry,
        "images": [
            (label_of(path), _thumbnail(path, path.stat().st_mtime_ns))
            for path in images
        ],
        "curve": curve,
    }


# Cached, because a run rewrites its report after each person.
@functools.cache
def _thumbnail(path: Path, _changed: int) -> str:
    """Returns an image file as a small JPEG in base64."""
    size = THUMBNAIL, THUMBNAIL
    with Image.open(path) as image:
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return base64.b64encode(out.getvalue()).decode()


@functools.cache
def _curve(path: Path, _changed: int) -> str:
    return plots.loss_curve(path)
