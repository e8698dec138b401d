"""Turns a run into pictures and tables that a person reads without opening the code."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from guide_jax.data import to_uint8
from guide_jax.evaluate import MEASURES

TILE = 192  # side of a picture in `before_after.png`, pixels
GAP = 8
LINE = 22
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


def table(results: Mapping[str, float]) -> str:
    """Returns the measures as lines of text, each with its meaning."""
    rows = [
        (name, f"{results[name]:.3f}" if name != "others" else str(results[name]), text)
        for name, text in MEASURES.items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(
        f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {text}"
        for name, value, text in rows
    )


def mean_and_deviation(values: Sequence[float]) -> str:
    """Returns "0.123 ± 0.045", with the sample's standard deviation if it has one."""
    mean = f"{np.mean(values):.3f}"
    return f"{mean} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else mean
