"""What makes two runs the same: hashes of people, settings, weights and files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from guide_jax.errors import InputError
from guide_jax.people import Person

# Fields that say where things go, where they are computed and how they are counted, not
# what a training does.
NOT_TRAINING = (
    "name", "save_every", "cache", "source", "networks", "evaluate", "render",
    "frugal", "parallel",
)  # fmt: skip


def of_person(person: Person, source: ConfigDict, hashes: Mapping[str, str]) -> str:
    """Returns a hash of whom a run forgets.

    Args:
        person: whom.
        source: how they are found, `config.source`.
        hashes: of the run's networks, by role.

    Raises:
        InputError: the photo can't be read. Of a test photo, that is a fingerprint too.
    """
    who: dict = {"seed": person.seed, "psi": source.psi}
    if person.photo:
        tests = []
        for photo in person.tests:
            try:
                tests.append(of_file(photo))
            except InputError:
                tests.append("unreadable")
        roles = ["encoder"] + ["detector"] * (source.align != "none")
        who = {
            "photos": [of_file(person.photo), *tests],
            "align": source.align,
            "refine": source.refine.to_dict(),
            "networks": [hashes.get(role) for role in roles],
        }
    return of(who)


def of_training(config: ConfigDict, person: str, hashes: Mapping[str, str]) -> str:
    """Returns a hash of all that a training's result depends on, but for the device.

    Args:
        config: the run's.
        person: from `of_person`.
        hashes: of the run's networks, by role.
    """
    settings = config.to_dict()
    settings = {k: v for k, v in settings.items() if k not in NOT_TRAINING}
    roles = "generator", "lpips", "identity"
    return of([settings, person, [hashes[role] for role in roles]])


def of_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, hexadecimal.

    Raises:
        InputError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error


def of(thing: object) -> str:
    """Returns a hash of what JSON can say."""
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()
