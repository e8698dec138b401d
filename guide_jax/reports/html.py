"""The report of a run as one HTML file that opens offline."""

import base64
import functools
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from guide_jax.reports import report
from guide_jax.reports.summary import Done

THUMB = 144  # side of a thumbnail, pixels
CURVE = (320, 120)  # width and height of a loss curve, pixels
POINTS = 160  # of a loss curve
TERMS = {"total": "#222", "local": "#c33", "adjacency": "#36c", "global": "#393"}

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 2em auto;
  max-width: 76em; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; }
th, td { padding: .2em .7em; text-align: left; border-bottom: 1px solid #ddd;
  vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.scroll { overflow-x: auto; }
figure { display: inline-block; margin: 0 .5em .5em 0; }
figcaption { font-size: .8em; color: #555; }
section { border-top: 1px solid #ddd; padding: 1em 0; display: flex; flex-wrap: wrap;
  gap: 1em; }
section h3 { flex-basis: 100%; margin: 0; font-size: 1em; }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto; }
.fault { color: #b00; }
"""


def page(summary: Mapping, done: Sequence[Done], name: str) -> str:
    """Returns the whole HTML text.

    Args:
        summary: from `summary.summarise`.
        done: the people, in the order of their rows.
        name: of the run.
    """
    rows, failed = summary["people"], summary["failed"]
    count = f"{len(rows)} {'person' if len(rows) == 1 else 'people'} forgotten"
    if failed:
        count += f", {len(failed)} failed"
    parts = [
        f"<h1>{_text(name)}: {count}</h1>",
        _means(summary),
        _faults(failed),
        "<h2>Person by person</h2>",
        _table(rows),
        *(_person(results, folder) for results, folder in done),
        "<h2>Versions</h2>",
        _definitions(summary["versions"]),
        "<h2>Configuration</h2>",
        f"<pre>{_text(json.dumps(summary['config'], indent=2))}</pre>",
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{_text(name)}: {count}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _text(thing: object) -> str:
    return html.escape(str(thing))


def _means(summary: Mapping) -> str:
    lines = [
        f'<tr><th>{_text(name)}</th><td class="n">{_text(value)}</td>'
        f"<td>{_text(text)}</td></tr>"
        for name, value, text in report.summary_rows(summary)
    ]
    return f"<table>{''.join(lines)}</table>"


def _faults(failed: Sequence[Mapping]) -> str:
    lines = [
        f'<li class="fault">{_text(fault["title"])}: {_text(fault["fault"])}</li>'
        for fault in failed
    ]
    return f"<h2>Failed</h2><ul>{''.join(lines)}</ul>" if lines else ""


def _table(rows: Sequence[Mapping]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in list(row)[2:]))
    head = "".join(f"<th>{_text(name)}</th>" for name in ["person", *names])
    lines = []
    for row in rows:
        cells = "".join(f'<td class="n">{_cell(row.get(name))}</td>' for name in names)
        link = f'<a href="#{_text(row["person"])}">{_text(row["title"])}</a>'
        lines.append(f"<tr><td>{link}</td>{cells}</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _cell(value: float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _person(results: Mapping, folder: Path) -> str:
    figures = "".join(
        f'<figure><img width="{THUMB}" height="{THUMB}" alt="{_text(label)}"'
        f' src="data:image/jpeg;base64,{_thumbnail(path, path.stat().st_mtime_ns)}">'
        f"<figcaption>{_text(label)}</figcaption></figure>"
        for path in sorted((folder / "pictures").glob("*.png"))
        for label in [path.stem[2:].replace("_", " ")]  # from "1_before"
    )
    notes = "".join(f"<p>{_text(note)}</p>" for note in results.get("notes", ()))
    metrics = folder / "metrics.jsonl"
    curve = _curve(metrics, metrics.stat().st_mtime_ns) if metrics.exists() else ""
    return (
        f'<section id="{_text(results["person"])}"><h3>{_text(results["title"])}</h3>'
        f"<div>{figures}</div><div>{curve}</div>{notes}</section>"
    )


@functools.cache
def _thumbnail(path: Path, _changed: int) -> str:
    """Returns a picture as a small JPEG in base64; once for each time it changed."""
    with Image.open(path) as image:
        small = image.convert("RGB").resize((THUMB, THUMB), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return base64.b64encode(out.getvalue()).decode()


@functools.cache
def _curve(path: Path, _changed: int) -> str:
    """Draws the losses over the steps as inline SVG, averaged to `POINTS` points."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError):
        return ""
    if not lines:
        return ""
    width, height = CURVE
    terms = {name: [line[name] for line in lines] for name in TERMS}
    top = max(max(values) for values in terms.values()) or 1.0
    drawn, names = [], []
    for i, (name, values) in enumerate(terms.items()):
        means = [np.mean(x) for x in np.array_split(values, min(POINTS, len(values)))]
        x = (np.arange(len(means)) + 0.5) * width / len(means)
        y = height * (1 - np.array(means) / top)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        drawn.append(
            f'<polyline fill="none" stroke="{TERMS[name]}" points="{points}"/>'
        )
        names.append(
            f'<text x="{8 + 80 * i}" y="{height + 16}" fill="{TERMS[name]}"'
            f' font-size="12">{name}</text>'
        )
    return (
        f'<svg width="{width}" height="{height + 22}" role="img"'
        f' aria-label="losses over {len(lines)} steps, up to {top:.3g}">'
        f'<rect width="{width}" height="{height}" fill="#f8f8f8"/>'
        f'<text x="4" y="12" font-size="11" fill="#777">{top:.3g}</text>'
        f'<text x="{width - 70}" y="{height - 4}" font-size="11" fill="#777">'
        f"{len(lines)} steps</text>{''.join(drawn)}{''.join(names)}</svg>"
    )


def _definitions(items: Mapping[str, str]) -> str:
    lines = [
        f"<tr><th>{_text(k)}</th><td>{_text(v)}</td></tr>" for k, v in items.items()
    ]
    return f"<table>{''.join(lines)}</table>"
