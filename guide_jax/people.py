"""Whom a run forgets: sampled people, photos, or folders of photos (section 4.1)."""

import re
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from guide_jax.errors import InputError
from guide_jax.faces.photos import list_photos

SCENARIOS = "random", "in_domain", "out_of_domain"


class Person(NamedTuple):
    """One person to be forgotten.

    Attributes:
        name: of the person's folder and row; no two of a run have the same.
        title: for captions.
        seed: of a sampled person, else None.
        photo: that the person is forgotten from, else None.
        tests: other photos of the person, on which the forgetting is tested.
    """

    name: str
    title: str
    seed: int | None = None
    photo: Path | None = None
    tests: tuple[Path, ...] = ()


def listed(source: ConfigDict) -> list[Person]:
    """Returns the people that `config.source` means, without reading their photos.

    Raises:
        InputError: the scenario is unknown or does not fit the rest, there is no such
            photo or folder, or nobody is in it.
    """
    scenario = source.scenario or ("in_domain" if source.image else "random")
    if scenario not in SCENARIOS:
        raise InputError(
            f"config.source.scenario is {scenario!r}; known are {', '.join(SCENARIOS)}"
        )
    if (scenario == "random") == bool(source.image):
        raise InputError(
            "config.source.image names photos, but the scenario is 'random'"
            if source.image
            else f"the scenario {scenario!r} needs photos: set --config.source.image"
        )
    if scenario == "random":
        return _sampled(source)
    path = Path(source.image)
    if scenario == "out_of_domain":
        return _by_folder(path)
    if path.is_dir():
        photos = list_photos(path)
        names = _names([photo.relative_to(path) for photo in photos])
        pairs = zip(names, photos, strict=True)
        return [Person(name, photo.name, photo=photo) for name, photo in pairs]
    if not path.is_file():
        raise InputError(f"{path}: no such photo; check --config.source.image")
    return [Person(_names([Path(path.name)])[0], path.name, photo=path)]


def _sampled(source: ConfigDict) -> list[Person]:
    seeds = source.seeds or range(source.seed, source.seed + source.count)
    wrong = [s for s in seeds if not isinstance(s, int) or not 0 <= s < 2**63]
    if wrong or not seeds:
        raise InputError(
            f"config.source.seeds holds {wrong[0]!r}; whole numbers from 0 are seeds"
            if wrong
            else "config.source.count is 0; at least one person is needed"
        )
    unique = dict.fromkeys(seeds)
    return [Person(f"seed_{seed}", f"seed {seed}", seed=seed) for seed in unique]


def _by_folder(path: Path) -> list[Person]:
    """Takes each sub-folder, or else the folder itself, for one person."""
    if not path.is_dir():
        raise InputError(
            f"{path}: no such folder; 'out_of_domain' takes a folder with several"
            " photos of a person, or with a sub-folder for each person"
        )
    within = [photo.relative_to(path) for photo in list_photos(path)]
    folders = sorted(
        {path / photo.parts[0] for photo in within if len(photo.parts) > 1}
    )
    if folders:
        loose = [photo.name for photo in within if len(photo.parts) == 1]
        empty = {x.name for x in path.iterdir() if x.is_dir()} - {
            x.name for x in folders
        }
        for what, left_out in (("photos in no folder", loose), ("no photos in", empty)):
            if left_out:
                print(f"left out of {path}: {what}: {', '.join(sorted(left_out))}")
    people = []
    names = _names([Path(folder.name) for folder in folders or [path.absolute()]])
    for name, folder in zip(names, folders or [path], strict=True):
        first, *rest = list_photos(folder)
        title = f"{folder.name}/{first.name}"
        people.append(Person(name, title, photo=first, tests=tuple(rest)))
    return people


def _names(paths: list[Path]) -> list[str]:
    """Returns a name that is fit for a folder for each path, no two the same."""
    stems = [re.sub(r"[^\w.-]+", "_", str(path.with_suffix(""))) for path in paths]
    whole = [re.sub(r"[^\w.-]+", "_", str(path)) for path in paths]
    names: list[str] = []
    for stem, full in zip(stems, whole, strict=True):
        name = stem if stems.count(stem) == 1 else full
        while name.lower() in {other.lower() for other in names} or name in (".", ".."):
            name += "_"
        names.append(name)
    return names
