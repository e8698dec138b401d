"""Writes a person's pictures: `before_after.png`, each image on its own, animations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from guide_jax.faces.photos import to_uint8
from guide_jax.storage.atomic import writing

TILE = 192  # side of an image in `before_after.png`, in pixels
GAP = 8
LINE = 22
LABELS = "photo", "reconstruction before", "before", "after", "target"
TEST_LABELS = "test photo", "reconstruction before", "after"
INK, PAPER = (30, 30, 30), (255, 255, 255)

# A test photo, and its reconstruction before and after, [H, W, 3] each.
TestRow = tuple[np.ndarray, np.ndarray, np.ndarray]


def save_animation(path: Path, frames: Sequence[Image.Image], duration: int) -> None:
    """Writes an endless animation.

    Args:
        path: path of a GIF or WebP file.
        frames: images of one size.
        duration: duration of a frame in milliseconds.
    """
    first, *rest = frames
    kind = path.suffix[1:].upper()
    with writing(path) as part:
        first.save(
            part, kind, save_all=True, append_images=rest, duration=duration, loop=0
        )


def before_after(
    path: Path,
    person: Mapping[str, np.ndarray],
    tests: Sequence[TestRow],
    others: tuple[np.ndarray, np.ndarray],
    caption: str,
    sides: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a picture that shows one person's unlearning.

    Args:
        path: path of the PNG file.
        person: label -> image `[H, W, 3]`, for the first row from left to right.
        tests: a row for each test photo.
        others: other people before and after, each `[N, H, W, 3]`.
        caption: one line of text at the top.
        sides: label -> images from several sides `[V, H, W, 3]`, a row each, of which
            every second is shown.
    """
    turned = (sides or {}).items()
    rows = [
        ("", dict(person)),
        *((f"{x}, from the sides", _numbered(images[::2])) for x, images in turned),
        *(("", dict(zip(TEST_LABELS, row, strict=True))) for row in tests),
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
    _save(sheet, path)


def _numbered(images: np.ndarray) -> dict[str, np.ndarray]:
    return {str(i): image for i, image in enumerate(images)}


def save_images(
    folder: Path, person: Mapping[str, np.ndarray], tests: Sequence[TestRow] = ()
) -> None:
    """Writes images `[H, W, 3]` as PNG files, with numbers and labels as names.

    An earlier run's files with these labels are removed; other files stay.

    Args:
        folder: the folder, created if needed.
        person: label -> image.
        tests: the test photos' images.
    """
    named = list(person.items())
    for row in tests:
        named += zip(TEST_LABELS, row, strict=True)
    _save_numbered(folder, named)


def save_pairs(folder: Path, before: np.ndarray, after: np.ndarray) -> None:
    """Writes images of the same people, `[N, H, W, 3]` each, as `save_images` does."""
    both = zip(before, after, strict=True)
    labels = "before", "after"
    _save_numbered(folder, [pair for x in both for pair in zip(labels, x, strict=True)])


def _save_numbered(folder: Path, named: Sequence[tuple[str, np.ndarray]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in stored_images(folder):
        old.unlink()
    for i, (label, image) in enumerate(named, 1):
        path = folder / f"{i}_{label.replace(' ', '_')}.png"
        _save(Image.fromarray(to_uint8(image)), path)


def stored_images(folder: Path) -> list[Path]:
    """Returns the files that `save_images` wrote, in order."""
    known = {*LABELS, *TEST_LABELS}
    files = [
        path
        for path in folder.glob("[1-9]*_*.png")
        if path.stem.split("_")[0].isdecimal() and label_of(path) in known
    ]
    return sorted(files, key=lambda path: int(path.stem.split("_")[0]))


def label_of(path: Path) -> str:
    """Returns the label of a file that `save_images` wrote."""
    return path.stem.partition("_")[2].replace("_", " ")  # without the number


def _save(image: Image.Image, path: Path) -> None:
    with writing(path) as part:
        image.save(part, "PNG")
