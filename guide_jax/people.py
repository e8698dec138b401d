"""Lists the people to forget: seeds, photos or folders of photos (section 4.1)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from guide_jax.config_types import Source
from guide_jax.errors import InputError
from guide_jax.faces.folders import list_photos, sort_out

LONGEST_NAME = 200  # bytes; file systems take 255, and "_" may follow


class Person(NamedTuple):
    """One person to forget.

    Attributes:
        name: name of the person's folder and row, unique in a run.
        title: text for captions.
        seed: the seed of a sampled person; None if there is a photo.
        photos: the photos from which the person is forgotten; none for a sampled
            person.
        tests: other photos of the person, on which forgetting is tested.
    """

    name: str
    title: str
    seed: int | None = None
    photos: tuple[Path, ...] = ()
    tests: tuple[Path, ...] = ()


def sampled(seed: int) -> Person:
    """Returns the person that is sampled from a seed."""
    return Person(f"seed_{seed}", f"seed {seed}", seed=seed)


def list_people(source: Source) -> list[Person]:
    """Returns the people of `config.source`, without reading their photos.

    Raises:
        InputError: the photo or folder does not exist, or the folder has no photos.
    """
    if source.scenario == "random":
        seeds = source.seeds or range(source.seed, source.seed + source.count)
        return [sampled(seed) for seed in dict.fromkeys(seeds)]
    path = Path(source.image)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # for example, because a name is too long
        raise InputError(
            f"config.source.image cannot be read ({error.strerror}): {path}"
        ) from error
    if source.scenario == "out_of_domain":
        if not is_folder:
            raise InputError(
                f"{path}: no such folder; 'out_of_domain' takes a folder with several"
                " photos of one person, or with a sub-folder for each person"
            )
        return _by_folder(path, source)
    if is_folder:
        photos = list_photos(path)
        names = _names([photo.relative_to(path) for photo in photos])
        pairs = zip(names, photos, strict=True)
        return [Person(name, photo.name, photos=(photo,)) for name, photo in pairs]
    if not is_file:
        raise InputError(f"{path}: no such photo; check --config.source.image")
    return [Person(_names([Path(path.name)])[0], path.name, photos=(path,))]


def left_out(source: Source) -> list[str]:
    """Returns a line for each file or sub-folder of photos that no person has.

    Raises:
        InputError: the folder cannot be read.
    """
    path = Path(source.image)
    if source.scenario == "random" or not path.is_dir():
        return []
    photos, lines = sort_out(path)
    if source.scenario == "out_of_domain":
        folders = _sub_folders(path, photos)
        if folders:
            lines += [
                f"{photo}: outside the people's sub-folders"
                for photo in photos
                if photo.parent == path
            ]
        lines += [
            f"{x}: a sub-folder without photos"
            for x in sorted(path.iterdir())
            if x.is_dir() and x not in folders and not x.name.startswith(".")
        ]
    return lines


def _sub_folders(path: Path, photos: Sequence[Path]) -> list[Path]:
    """Returns the sub-folders that have photos, themselves or in their sub-folders."""
    within = [photo.relative_to(path) for photo in photos]
    return sorted({path / x.parts[0] for x in within if len(x.parts) > 1})


def _by_folder(path: Path, source: Source) -> list[Person]:
    """Treats each sub-folder, or the folder if it has none, as one person."""
    every = list_photos(path)
    folders = _sub_folders(path, every)
    people = []
    names = _names([Path(folder.name) for folder in folders or [path.absolute()]])
    for name, folder in zip(names, folders or [path], strict=True):
        photos = tuple(photo for photo in every if photo.is_relative_to(folder))
        count = source.photos_per_person or len(photos) - source.held_out
        count = min(max(1, count), len(photos))
        title = f"{folder.name}/{photos[0].name}"
        if count > 1:
            title += f" and {count - 1} more"
        people.append(Person(name, title, photos=photos[:count], tests=photos[count:]))
    return people


def _names(paths: Sequence[Path]) -> list[str]:
    """Returns a unique folder name for each path."""
    stems = [re.sub(r"[^\w.-]+", "_", str(path.with_suffix(""))) for path in paths]
    whole = [re.sub(r"[^\w.-]+", "_", str(path)) for path in paths]
    names: list[str] = []
    for stem, full in zip(stems, whole, strict=True):
        name = stem if stems.count(stem) == 1 else full
        # The end, because that is where photos of one folder differ.
        name = name.encode()[-LONGEST_NAME:].decode(errors="ignore")
        while name.lower() in {other.lower() for other in names} or name in (".", ".."):
            name += "_"
        names.append(name)
    return names
