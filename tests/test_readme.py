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

from guide_jax import data
from guide_jax.checkpoint import load_network
from guide_jax.networks import BUNDLE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    ((?:pip|python) .*)$", README, re.MULTILINE)
RUN_BY_CI = [command for command in COMMANDS if command.startswith("pip install")]
RUNS = [c for c in COMMANDS if c.startswith("python main.py") and "ffhq" not in c]
PUBLISHED = [c for c in COMMANDS if c not in RUN_BY_CI + RUNS]
# What makes a run of minutes one of seconds.
SHORT = ["--config.steps=2", "--config.evaluate.others=10"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with a photo of somebody, `face.jpg`."""
    folder = tmp_path_factory.mktemp("readme")
    generator = load_network(BUNDLE / "mobilestylegan_128.npz")
    w = generator.mapping(data.z_of_seed(5, generator.z_dim), psi=0.7)
    face = np.asarray(generator.synthesis(w)[0])[0]
    Image.fromarray(data.to_uint8(face)).resize((300, 300)).save(folder / "face.jpg")
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
    done = run(command, folder, *SHORT, "--workdir=run")
    assert done.returncode == 0, done.stderr
    assert "id_kept" in done.stdout
    with Image.open(folder / "run" / "before_after.png") as picture:
        assert picture.width > 500


@pytest.mark.parametrize("command", PUBLISHED)
def test_without_published_files_a_command_says_what_is_missing(command, folder):
    done = run(command, folder)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    for file in ("ffhq.pkl", "vgg.pth", "model_ir_se50.pth"):
        assert file in done.stderr
