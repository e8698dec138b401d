"""From files to the networks in them: one in a file, several, or one in a few."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert import mobilestylegan
from convert.families import (
    FAMILIES,
    GROUPS,
    Group,
    Part,
    bundle_of,
    family_of,
    part_of,
)
from convert.rules import BESIDE, Family, StateDict, check_beside
from convert.torch_file import read

# Files that make a network only together: the part each of them is -> path, contents.
Parts = dict[Part, tuple[Path, StateDict]]


@dataclass(frozen=True)
class Job:
    """One network to be made of one file, or of several."""

    files: tuple[Path, ...]
    family: Family
    state: StateDict
    name: str

    @property
    def title(self) -> str:
        """The files, for tables and messages."""
        return " + ".join(map(str, self.files))


def plan(files: Sequence[Path]) -> tuple[list[Job], list[str]]:
    """Reads and recognises the files.

    Returns:
        The jobs that can be run, and a line for each file that belongs to none.
    """
    jobs, errors = [], []
    parts: Parts = {}
    for path in files:
        try:
            if mobilestylegan.holds_graphs(path):
                state, name = mobilestylegan.read(path), mobilestylegan.NAME
            else:
                data, name = read(path), path.stem
                if bundle := bundle_of(data):
                    jobs += [
                        Job((path,), family, state, f"{name}_{suffix}")
                        for suffix, (family, state) in bundle.split(data).items()
                    ]
                    continue
                state = state_dict(data)
            if family := family_of(state):
                jobs.append(Job((path,), family, state, name))
            elif not (part := part_of(state)):
                known = "; ".join(family.title for family in FAMILIES)
                raise ValueError(f"no known network; known are: {known}")
            elif part in parts:
                raise ValueError(f"{part.title} again, after {parts[part][0]}")
            else:
                parts[part] = path, state
        except Exception as error:  # one file's fault must not lose the others
            errors.append(one_line(path, error))
    for group in GROUPS:
        if not any(part in parts for part in group.parts):
            continue
        try:
            jobs.append(join(group, parts))
        except ValueError as error:
            errors.append(str(error))
    return jobs, errors


def join(group: Group, parts: Parts) -> Job:
    """Merges the files of one network.

    Raises:
        ValueError: some are missing, or they don't go together.
    """
    given = [part for part in group.parts if part in parts]
    files = tuple(parts[part][0] for part in given)
    title = " + ".join(map(str, files))
    if missing := [part.title for part in group.parts if part not in parts]:
        number = "both" if len(group.parts) == 2 else f"all {len(group.parts)}"
        raise ValueError(
            f"{title}: this is {' and '.join(part.title for part in given)}, of which"
            f" {group.title} needs {' and '.join(missing)} as well; give {number} files"
            " together"
        )
    merged = {
        f"{part.prefix}{key}": value
        for part in given
        for key, value in parts[part][1].items()
    }
    if not (family := family_of(merged)):
        raise ValueError(f"{title}: together no known network")
    return Job(files, family, merged, family.kind)


def state_dict(data: Any) -> StateDict:
    """Returns the part of a file's contents that the families look at."""
    if isinstance(data, Mapping) and isinstance(data.get("state_dict"), Mapping):
        check_beside(data, "state_dict", BESIDE | {"latent_avg"})
        # A tensor of the network's, which encoder4editing keeps apart.
        apart = {key: data[key] for key in ("latent_avg",) if key in data}
        data = {**data["state_dict"], **apart}
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise ValueError("holds no named tensors")
    return data


def one_line(title: Path | str, error: Exception) -> str:
    """Returns one line that names the file once."""
    text = " ".join(str(error).split())
    if not isinstance(error, ValueError | OSError):
        text = f"does not convert ({type(error).__name__}: {text})"
    return text if text.startswith(f"{title}: ") else f"{title}: {text}"
