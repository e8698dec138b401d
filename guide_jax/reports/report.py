"""Turns a run into pictures and tables that a person reads without opening the code."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from guide_jax.faces.photos import to_uint8
from guide_jax.metrics import evaluator
from guide_jax.metrics.evaluator import MEASURES

TILE = 192  # side of a picture in `before_after.png`, pixels
GAP = 8
LINE = 22
LABELS = "photo", "reconstruction before", "before", "after", "target"
TARGETS_MEANING = (
    "mean identity similarity of different people's targets (low: each goes elsewhere)"
)
INK, PAPER = (30, 30, 30), (255, 255, 255)


def before_after(
    path: Path,
    person: Mapping[str, np.ndarray],
    others: tuple[np.ndarray, np.ndarray],
    caption: str,
) -> None:
    """Writes the picture of one unlearning.

    Args:
        path: of the PNG file.
        person: label -> image `[H, W, 3]`, the first row from left to right.
        others: other people before and after, each `[N, H, W, 3]`.
        caption: one line of text above.
    """
    rows = [
        ("", dict(person)),
        ("other people, before", _numbered(others[0])),
        ("other people, after", _numbered(others[1])),
    ]
    columns = max(len(images) for _, images in rows)
    width = GAP + columns * (TILE + GAP)
    height = LINE + GAP + len(rows) * (LINE + TILE + GAP)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    draw.text((GAP, GAP // 2), caption, INK, font)
    top = LINE + GAP
    for title, images in rows:
        draw.text((GAP, top), title, INK, font)
        for i, (label, image) in enumerate(images.items()):
            left = GAP + i * (TILE + GAP)
            if not title:
                draw.text((left, top), label, INK, font)
            tile = Image.fromarray(to_uint8(image))
            tile = tile.resize((TILE, TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (left, top + LINE))
        top += LINE + TILE + GAP
    part = path.with_suffix(".part")
    sheet.save(part, "PNG")
    part.replace(path)


def _numbered(images: np.ndarray) -> dict[str, np.ndarray]:
    return {str(i): image for i, image in enumerate(images)}


def pictures(folder: Path, images: Mapping[str, np.ndarray]) -> None:
    """Writes images `[H, W, 3]` as PNG files, numbered and named by their labels.

    Those of an earlier time, of labels in `LABELS`, are removed; no other files are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [label.replace(" ", "_") for label in LABELS]
    for old in folder.glob("[1-9]_*.png"):
        if old.stem[2:] in names:
            old.unlink()
    for i, (label, image) in enumerate(images.items(), 1):
        path = folder / f"{i}_{label.replace(' ', '_')}.png"
        part = path.with_suffix(".part")
        Image.fromarray(to_uint8(image)).save(part, "PNG")
        part.replace(path)


def write_json(path: Path, results: Mapping) -> None:
    """Writes results so that either the whole of them is at `path` or nothing new."""
    text = json.dumps(results, indent=2, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Writes a file so that either the whole of it is at `path` or nothing new."""
    part = path.with_name(f"{path.name}.part")
    # A file's name may have bytes that are no text.
    part.write_text(text, encoding="utf-8", errors="replace")
    part.replace(path)


def table(results: Mapping[str, float | int | None]) -> str:
    """Returns a person's measures as lines of text, each with its meaning."""
    return _lines(
        (name, _value(name, results[name]), meaning(name))
        for name in evaluator.measures_in(results)
    )


def summary_rows(summary: Mapping) -> list[tuple[str, str, str]]:
    """Returns name, mean over the people and meaning of each measure of a run."""
    rows = [
        (name, mean_of(name, summary), meaning(name))
        for name in evaluator.measures_in(summary["mean"])
    ]
    if summary["id_targets"] is not None:
        rows.append(("id_targets", f"{summary['id_targets']:.3f}", TARGETS_MEANING))
    return rows


def summary_table(summary: Mapping) -> str:
    """Returns the means of several people's measures as lines of text."""
    return _lines(summary_rows(summary))


def _lines(rows: Iterable[tuple[str, str, str]]) -> str:
    rows = list(rows)
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    return "\n".join(
        f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {text}"
        for name, value, text in rows
    )


def _value(name: str, value: float | int | None) -> str:
    if value is None:
        return "no face"
    return str(value) if _counts(name) else f"{value:.3f}"


def _counts(name: str) -> bool:
    return evaluator.measure_of(name) in evaluator.COUNTS


def meaning(name: str) -> str:
    """Says what a measure is; one of a further judge's, by that judge."""
    known = evaluator.measure_of(name)
    if name == known:
        return MEASURES[name]
    return f"{MEASURES[known]}, by {name.removeprefix(f'{known}_')}"


def mean_of(name: str, summary: Mapping) -> str:
    """Returns a measure's mean over the people, with its deviation unless it counts."""
    mean = summary["mean"][name]
    if _counts(name):
        return f"{mean:g}"
    return plus_minus(mean, summary["deviation"].get(name))


def plus_minus(mean: float, deviation: float | None) -> str:
    """Returns "0.123 ± 0.045", or the mean alone."""
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Returns "0.123 ± 0.045", with the sample's standard deviation if it has one."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else None
    return plus_minus(np.mean(values), deviation)


def duration(seconds: float) -> str:
    """Returns "12 s", "5 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours = f"{minutes // 60} h " if minutes >= 60 else ""
    return f"{hours}{minutes % 60 if hours else minutes} min"
