"""What is missing is installed from wheels, without a network, into a folder."""

import zipfile

import pytest

from benchmarks import wheels


@pytest.fixture
def requirements(monkeypatch, tmp_path):
    file = tmp_path / "wheels.txt"
    file.write_text("# why\n\npytest\nguide-absent-one\nguide-absent-two>=1,<2\n")
    monkeypatch.setattr(wheels, "LIST", file)


def save_wheel(folder, name: str) -> None:
    """Writes a wheel with one module."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tag)
        wheel.writestr(f"{info}/RECORD", "")


def test_only_packages_that_are_not_installed_are_missing(requirements):
    assert wheels.missing() == ["guide-absent-one", "guide-absent-two>=1,<2"]


def test_without_the_folder_the_missing_packages_are_named(requirements, capsys):
    assert wheels.main("no_wheels", "target") == 1
    assert "no folder no_wheels: guide-absent-one" in capsys.readouterr().out


def test_a_missing_wheel_leaves_the_others_installable(requirements, tmp_path):
    save_wheel(tmp_path / "wheels", "guide_absent_two")
    target = tmp_path / "target"
    assert wheels.main(str(tmp_path / "wheels"), str(target)) == 1
    assert (target / "guide_absent_two.py").exists()
    save_wheel(tmp_path / "wheels", "guide_absent_one")
    assert wheels.main(str(tmp_path / "wheels"), str(target)) == 0
    assert (target / "guide_absent_one.py").exists()
