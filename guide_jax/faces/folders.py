"""Finds the photos in a folder, and says which files are left out."""

import os
from collections.abc import Iterator
from pathlib import Path

from guide_jax.errors import InputError
from guide_jax.faces.photos import why_no_photo

# Files with these suffixes are photos, even if they turn out to be damaged. Others are
# photos if Pillow recognises their contents.
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".heic", ".heif", ".avif",
    ".bmp", ".gif", ".tif", ".tiff", ".jp2",
)  # fmt: skip
NAMED = 10  # files that `in_short` names; the rest are only counted


def list_photos(folder: str | Path) -> list[Path]:
    """Lists the photos in a folder and its sub-folders; see `sort_out`.

    Raises:
        InputError: the folder does not exist or contains no photos.
    """
    photos, left_out = sort_out(folder)
    if not photos:
        why = f": {in_short(left_out)}" if left_out else ""
        raise InputError(f"{folder}: no photos in it{why}")
    return photos


def sort_out(folder: str | Path) -> tuple[list[Path], list[str]]:
    """Finds the photos in a folder and its sub-folders.

    Hidden files and folders are not used, because operating systems keep metadata and
    previews there.

    Args:
        folder: the folder to search; links to folders are followed.

    Returns:
        The photos, sorted, and a line for each of the other files: which, and why it is
        left out. Hidden files that are no photos are not mentioned.

    Raises:
        InputError: the folder does not exist.
    """
    folder = Path(folder)
    photos, left_out = [], []
    for path, unreadable in _walk(folder):
        why = unreadable
        if not why and not path.is_file():
            why = (
                "a link to a file that is missing"
                if path.is_symlink()
                else "a pipe or device"
            )
        if not why and path.suffix.lower() not in SUFFIXES:
            why = why_no_photo(path)
        if _is_hidden(path, folder):
            if why or why_no_photo(path):
                continue
            why = "hidden, because its name or its folder's starts with a dot"
        if why:
            left_out.append(f"{path}: {why}")
        else:
            photos.append(path)
    return photos, left_out


def visible_files(folder: Path) -> list[Path]:
    """Returns the non-hidden files in a folder and its sub-folders, sorted."""
    return [
        path
        for path, unreadable in _walk(folder)
        if not unreadable and path.is_file() and not _is_hidden(path, folder)
    ]


def in_short(lines: list[str]) -> str:
    """Returns the first lines, and how many more there are, as one line."""
    more = len(lines) - NAMED
    return "; ".join(lines[:NAMED] + [f"and {more} more"] * (more > 0))


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yields all files, sorted, and why folders cannot be listed."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of photos")
    found: list[tuple[Path, str]] = []

    def failed(error: OSError) -> None:
        found.append((Path(error.filename), f"cannot be listed ({error.strerror})"))

    seen = set()  # a link may lead back to a folder that contains it
    for place, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [(Path(place, name), "") for name in names]
    yield from sorted(found)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
