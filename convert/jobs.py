"""Plans conversion jobs: a file may hold one network, several, or part of one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert import dlib_file, eg3d, mobilestylegan
from convert.registry import (
    FAMILIES,
    GROUPS,
    Group,
    Part,
    bundle_of,
    family_of,
    part_of,
)
from convert.rules import IGNORED_ENTRIES, Family, StateDict, check_entries
from convert.torch_file import read

# Files that hold only part of a network: part -> (path, contents).
Parts = dict[Part, tuple[Path, StateDict]]


@dataclass(frozen=True)
class Job:
    """One network to convert from one or more files."""

    files: tuple[Path, ...]
    family: Family
    state: StateDict
    name: str

    @property
    def title(self) -> str:
        """The file names, for tables and messages."""
        return " + ".join(map(str, self.files))


def plan(files: Sequence[Path]) -> tuple[list[Job], list[str]]:
    """Reads and recognises the files.

    Returns:
        The jobs that can be run, and one error line for each file without a job.
    """
    jobs, errors = [], []
    parts: Parts = {}
    means = {}
    for path in files:
        try:
            if mobilestylegan.holds_graphs(path):
                state, name = mobilestylegan.read(path), mobilestylegan.NAME
            elif dlib_file.holds_network(path):
                state, name = dlib_file.read(path), path.stem
            else:
                data, name = read(path), path.stem
                if bundle := bundle_of(data):
                    jobs += [
                        Job((path,), family, state, f"{name}_{suffix}")
                        for suffix, (family, state) in bundle.split(data).items()
                    ]
                    continue
                if eg3d.is_mean_code(data):
                    means[path] = data
                    continue
                state = state_dict(data)
            if family := family_of(state):
                jobs.append(Job((path,), family, state, name))
            elif not (part := part_of(state)):
                if reason := eg3d.refusal(state):
                    raise ValueError(reason)
                known = "; ".join(family.title for family in FAMILIES)
                raise ValueError(f"no supported network found; supported: {known}")
            elif part in parts:
                raise ValueError(
                    f"{part.title} was already given as {parts[part][0]}; give only"
                    " one of them"
                )
            else:
                parts[part] = path, state
        except Exception as error:  # one bad file must not stop the rest
            errors.append(one_line(path, error))
    jobs, strays = eg3d.with_mean_codes(jobs, means)
    errors += strays
    for group in GROUPS:
        if not any(part in parts for part in group.parts):
            continue
        try:
            jobs.append(join(group, parts))
        except ValueError as error:
            errors.append(str(error))
    return jobs, errors


def join(group: Group, parts: Parts) -> Job:
    """Merges the files of one network into a job.

    Raises:
        ValueError: files are missing, or do not fit together.
    """
    given = [part for part in group.parts if part in parts]
    files = tuple(parts[part][0] for part in given)
    title = " + ".join(map(str, files))
    if missing := [part.title for part in group.parts if part not in parts]:
        count = "both" if len(group.parts) == 2 else f"all {len(group.parts)}"
        raise ValueError(
            f"{title}: this is {' and '.join(part.title for part in given)}, but"
            f" {group.title} also needs {' and '.join(missing)}; give {count} files"
            " together"
        )
    merged = {
        f"{part.prefix}{key}": value
        for part in given
        for key, value in parts[part][1].items()
    }
    if not (family := family_of(merged)):
        raise ValueError(f"{title}: these files do not form a supported network")
    return Job(files, family, merged, family.kind)


def state_dict(data: Any) -> StateDict:
    """Returns the state dict in a file's contents."""
    if isinstance(data, Mapping) and isinstance(data.get("state_dict"), Mapping):
        check_entries(data, "state_dict", IGNORED_ENTRIES | {"latent_avg"})
        # encoder4editing stores this tensor of the network outside the state dict.
        latent_avg = {key: data[key] for key in ("latent_avg",) if key in data}
        data = {**data["state_dict"], **latent_avg}
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise ValueError("contains no named tensors; give a state dict")
    return data


def one_line(title: Path | str, error: Exception) -> str:
    """Returns a one-line message that names the file exactly once."""
    text = " ".join(str(error).split())
    if not isinstance(error, ValueError | OSError):
        text = f"conversion failed ({type(error).__name__}: {text})"
    return text if text.startswith(f"{title}: ") else f"{title}: {text}"
