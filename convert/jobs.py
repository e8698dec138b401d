"""Plans conversion jobs: a file may hold one network, several, or part of one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convert import dlib_file, eg3d, mobilestylegan
from convert.contents import find
from convert.registry import GROUPS, Group, Part, family_of
from convert.rules import Bundle, Family, StateDict
from convert.torch_file import read

# Files that hold only part of a network: part -> (path, state dict, notes).
Parts = dict[Part, tuple[Path, StateDict, list[str]]]


@dataclass(frozen=True)
class Job:
    """One network to convert from one or more files.

    Attributes:
        files: the files.
        family: the kind of network.
        state: its state dict.
        name: the converted network's name.
        notes: lines that the user should read.
    """

    files: tuple[Path, ...]
    family: Family
    state: StateDict
    name: str
    notes: list[str] = field(default_factory=list)

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
            name, notes = path.stem, []
            if mobilestylegan.holds_graphs(path):
                kind, state = mobilestylegan.MOBILESTYLEGAN, mobilestylegan.read(path)
                name = mobilestylegan.NAME
            elif dlib_file.holds_network(path):
                kind, state = dlib_file.FAMILY, dlib_file.read(path)
            else:
                data = read(path)
                if eg3d.is_mean_code(data):
                    means[path] = data
                    continue
                found = find(data)
                kind, state, notes = found.kind, found.state, list(found.notes)
            if isinstance(kind, Bundle):
                split = kind.split(state, notes.append)
                for suffix, (family, inner) in split.items():
                    job = Job((path,), family, inner, f"{name}_{suffix}", notes)
                    jobs.append(job)
                    notes = []  # said once
            elif isinstance(kind, Family):
                jobs.append(Job((path,), kind, state, name, notes))
            elif kind in parts:
                raise ValueError(
                    f"{kind.title} was already given as {parts[kind][0]}; give only"
                    " one of them"
                )
            else:
                parts[kind] = path, state, notes
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
    notes = [note for part in given for note in parts[part][2]]
    return Job(files, family, merged, family.kind, notes)


def one_line(title: Path | str, error: Exception) -> str:
    """Returns a one-line message that names the file exactly once."""
    text = str(error)
    if isinstance(error, OSError) and error.filename == str(title):
        text = error.strerror
    text = " ".join(text.split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    if not isinstance(error, ValueError | OSError):
        text = f"conversion failed ({type(error).__name__}: {text})"
    return text if text.startswith(f"{title}: ") else f"{title}: {text}"
