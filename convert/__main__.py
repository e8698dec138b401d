"""Turns published checkpoints into this project's networks.

    python -m convert ffhq.pkl model_ir_se50.pth --out weights

Each file is told by its tensors' names, whatever it is called. LPIPS is made of
two files, torchvision's vgg16-397923af.pth and the lpips package's vgg.pth; the face
detector MTCNN of three, pnet, rnet and onet (.pt or .npy). MobileStyleGAN comes as the
wheel of PyPI's random_face, or the folder it unpacks to.
"""

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert import mobilestylegan
from convert.families import FAMILIES, GROUPS, Group, Part, family_of, part_of
from convert.rules import Family, StateDict, check_beside, convert
from convert.torch_file import read
from guide_jax.checkpoint import leaf_shapes, save_network

# What training writes beside `state_dict` and conversion has no use for.
BESIDE = {
    "opts", "epoch", "global_step", "optimizer", "best_val_loss",
    "discriminator_state_dict", "discriminator_optimizer_state_dict",
}  # fmt: skip
COLUMNS = ("file", "network", "tensors", "parameters", "destination")


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


def main(argv: Sequence[str] | None = None) -> int:
    """Converts the files on the command line; returns 1 if any of them failed."""
    args = _parse(argv)
    jobs, errors = plan(args.files)
    rows, taken = [], {}
    for job in jobs:
        path = args.out / (job.name + (".npz" if args.npz else ""))
        try:
            if path in taken:
                raise ValueError(f"{path} is already the place of {taken[path]}")
            taken[path] = job.title
            rows.append(run(job, path, args.dtype))
        except Exception as error:  # one network's fault must not lose the others
            errors.append(_line(job.title, error))
    if rows:
        print(table(rows))
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m convert",
        description="Turns published checkpoints into this project's networks. Nothing"
        " in a file is executed.",
        epilog="known: " + "; ".join(family.title for family in FAMILIES),
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--npz", action="store_true", help="write one .npz file, not an Orbax folder"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the numbers on disk; float16 halves the size and is not exact",
    )
    return parser.parse_args(argv)


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
                state, name = state_dict(read(path)), path.stem
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
            errors.append(_line(path, error))
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


def run(job: Job, path: Path, dtype: str) -> tuple[str, ...]:
    """Converts and saves one network; returns its row of the table."""
    network = convert(job.state, job.family)
    files = [file for path in job.files for file in mobilestylegan.files(path)]
    sources = [{"file": file.name, "sha256": _sha256(file)} for file in files]
    about = {"family": job.family.title, "sources": sources}
    save_network(path, network, dtype=np.dtype(dtype), about=about)
    sizes = [int(np.prod(shape)) for shape in leaf_shapes(network).values()]
    return (
        job.title, job.family.title, str(len(sizes)), f"{sum(sizes):,}", str(path)
    )  # fmt: skip


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Returns the rows under `COLUMNS`, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    numbers = {COLUMNS.index("tensors"), COLUMNS.index("parameters")}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (COLUMNS, *rows)
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(title: Path | str, error: Exception) -> str:
    """Returns one line that names the file once."""
    text = " ".join(str(error).split())
    if not isinstance(error, ValueError | OSError):
        text = f"does not convert ({type(error).__name__}: {text})"
    return text if text.startswith(f"{title}: ") else f"{title}: {text}"


if __name__ == "__main__":
    sys.exit(main())
