"""Hashes people, settings, networks and files, to tell whether two runs are equal."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from guide_jax.config_types import Config, Source
from guide_jax.errors import InputError
from guide_jax.people import Person

# Fields that do not change what a training computes.
NOT_TRAINING = (
    "name", "save_every", "cache", "source", "networks", "evaluate", "render",
    "gradient_accumulation", "parallel", "attack", "overwrite",
)  # fmt: skip
# Version of the schema of results.json; results in an older one are measured again.
SCHEMA = 4


def of_person(person: Person, source: Source, hashes: Mapping[str, str]) -> str:
    """Returns a hash of the person to forget.

    Args:
        person: the person.
        source: the settings of `config.source`.
        hashes: role -> hash of the run's network.

    Raises:
        InputError: the person's only photo cannot be read.
    """
    who: dict = {"seed": person.seed, "psi": source.psi}
    if person.photos:
        roles = ["encoder", "identity", "lpips"]
        roles += ["detector"] * (source.align != "none")
        only = len(person.photos) == 1
        who = {
            "photos": [(of_file if only else _of_photo)(x) for x in person.photos],
            "tests": [_of_photo(path) for path in person.tests],
            "align": source.align,
            "refine": dataclasses.asdict(source.refine),
            "variants": source.variants,
            "codes_per_step": source.codes_per_step,
            "networks": [hashes.get(role) for role in roles],
        }
    return of(who)


def _of_photo(path: Path) -> str:
    """Returns a file's hash; of several photos, some may be unreadable."""
    try:
        return of_file(path)
    except InputError:
        return "unreadable"


def of_training(config: Config, person: str, hashes: Mapping[str, str]) -> str:
    """Returns a hash of everything that a training's result depends on but the device.

    Args:
        config: the run's settings.
        person: the person's hash, from `of_person`.
        hashes: role -> hash of the run's network.
    """
    settings = {k: v for k, v in config.fields.items() if k not in NOT_TRAINING}
    if not config.training.compat:  # as in results of earlier versions
        del settings["compat"]
    if config.training.erase:  # it ignores all of the paper's settings
        kept = "method", "erase", "compute", "precision", "seed"
        settings = {name: settings[name] for name in kept}
        settings["encoded"] = [hashes.get("encoder"), config.source.variants]
        settings["psi"] = config.source.psi
    else:
        del settings["method"], settings["erase"]
    roles = "generator", "lpips", "identity"
    return of([settings, person, [hashes[role] for role in roles]])


def of_measures(
    config: Config, hashes: Mapping[str, str], files: Sequence[Path], fid: str | None
) -> str:
    """Returns a hash of everything that a stored result's measures depend on.

    Args:
        config: the run's settings.
        hashes: role -> hash of the run's network.
        files: the external judges' files.
        fid: `FidMeasure.made_of`; None without FID.
    """
    settings = [SCHEMA, config.fields["evaluate"], config.source.psi]
    # Only attacks use the encoder if there are no photos.
    unused = {"encoder"} if not config.source.image else set()
    used = {role: x for role, x in hashes.items() if role not in unused}
    settings += ["compat"] * config.training.compat
    return of([*settings, used, [of_file(path) for path in files], fid])


def of_attacks(config: Config, hashes: Mapping[str, str], which: Sequence[str]) -> str:
    """Returns a hash of the attacks' settings.

    Args:
        config: the run's settings.
        hashes: role -> hash of the run's network.
        which: names of the attacks.
    """
    settings = dict(config.fields["attack"])
    for name in ("which", "after_training", "require"):
        del settings[name]
    return of([settings, sorted(which), hashes["identity"], hashes.get("encoder")])


def of_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, hexadecimal.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def of_path(path: Path) -> str:
    """Returns the SHA-256 of a file, or of a folder's files and their names.

    A folder's is that of the lines that `sha256sum` prints for its files, sorted by
    name.

    Raises:
        InputError: a file cannot be read.
    """
    if not path.is_dir():
        return of_file(path)
    lines = [
        f"{of_file(file)}  {file.relative_to(path).as_posix()}\n"
        for file in sorted(path.rglob("*"))
        if file.is_file()
    ]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def of_photos(paths: Sequence[Path]) -> dict[str, str]:
    """Returns path -> SHA-256 of photos; "unreadable" for one that cannot be read."""
    return {str(path): _of_photo(path) for path in paths}


def of(data: object) -> str:
    """Returns a hash of JSON-able data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
