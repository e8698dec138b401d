"""What a training was made from, and how two trainings differ, in words."""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from guide_jax.storage.fingerprint import NOT_TRAINING

SHOWN = 6  # differences in a message
# Fields of `config.source` that `fingerprint.of_person` depends on, but for `refine`.
OF_PERSON = "psi", "align", "variants", "codes_per_step"
# Other versions of these would continue a training with other numbers.
SAME_BYTES = "guide-jax", "code", "jax", "jaxlib"


@dataclass(frozen=True)
class Origin:
    """What a training is made from, stored with its checkpoint and its result.

    Attributes:
        config: all fields of the run's config, nested.
        person: the person's title.
        who: hash of the person, from `fingerprint.of_person`.
        networks: role -> hash of the network.
        versions: of packages, Python and this code; see `reports.summary.versions`.
    """

    config: Mapping[str, Any]
    person: str
    who: str
    networks: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Returns a dict that JSON can hold, and that `from_json` reads."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Origin":
        """Reads an origin; what a later version added is left out."""
        return cls(**{each.name: data[each.name] for each in fields(cls)})

    def other_versions(self, now: "Origin") -> list[str]:
        """Returns a line for each version with which a training does not continue."""
        there = {name: self.versions.get(name) for name in SAME_BYTES}
        here = {name: now.versions.get(name) for name in SAME_BYTES}
        return list(_changed(there, here))

    def differences(self, now: "Origin") -> list[str]:
        """Returns a line for each thing that makes `now` another training.

        What this origin does not record is left out.
        """
        there, here = (_flat(json.loads(json.dumps(x.config))) for x in (self, now))
        settings = {
            name: value
            for name, value in here.items()
            if name.split(".")[0] not in NOT_TRAINING
        }
        if self.person != now.person:
            found = [f"the person is {self.person} there, {now.person} now"]
        else:
            found = []
            if self.who != now.who:
                settings |= {f"source.{x}": here[f"source.{x}"] for x in OF_PERSON}
        found += [f"config.{line}" for line in _changed(there, settings)]
        found += [
            f"config.networks.{role} has other weights"
            for role, digest in now.networks.items()
            if self.networks.get(role, digest) != digest
        ]
        return found or ["the person's photos are others"] * (self.who != now.who)


def in_words(differences: list[str]) -> str:
    """Joins differences into one line, the first few of them."""
    more = len(differences) - SHOWN
    shown = differences[:SHOWN] + [f"and {more} more"] * (more > 0)
    return "; ".join(shown) or "settings that it does not record"


@functools.cache
def code_hash() -> str:
    """Returns a short hash of this package's source, which a version does not tell."""
    package, found = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(f"{path.relative_to(package).as_posix()}\n".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def _changed(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    for name, value in here.items():
        if name in there and there[name] is not None and there[name] != value:
            yield f"{name} is {there[name]!r} there, {value!r} now"


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested fields by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
