"""main.py run as a user does: the files that it writes, and how it reports mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

import main
from configs import demo, ffhq
from guide_jax.errors import UnlearningError, VerdictError
from guide_jax.experiment import evaluate
from guide_jax.metrics.calibration import Calibration
from guide_jax.models.goae import GOAE
from guide_jax.storage.lock import locked
from guide_jax.storage.network_file import load_network, save_network
from guide_jax.training import trainer

ROOT = Path(main.__file__).parent
WRITTEN = {
    "generator", "codes.npz", "embeddings.npz", "metrics.jsonl", "results.json",
    "before_after.png", "pictures", "results.csv", "report.html", "attacks.json",
    "tensorboard",
}  # fmt: skip
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Returns the files of tiny networks by role; LPIPS comes from the bundle."""
    folder = tmp_path_factory.mktemp("networks")
    save_network(folder / "other_encoder.npz", tiny.encoder(num_ws=5))
    return tiny.save_small_run(folder)


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "face.png")
    return tmp_path / "face.png"


def program(*args, cwd, **environment):
    """Runs main.py in its own process, as a user does."""
    return subprocess.run(
        [sys.executable, ROOT / "main.py", *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | ENVIRONMENT | environment,
        timeout=300,
    )


# Runs ---------------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder(tmp_path, networks):
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    cwd.mkdir()
    (home / "mine.py").write_text("from configs.demo import get_config as get_config")
    args = ["--config=~/mine.py", "--mode=render", "--config.render.count=1"]
    args += [f"--config.render.generator={networks['generator']}"]
    args += ["--config.render.what=('grid',)", "--workdir=~/runs/x"]
    done = program(*args, cwd=cwd, HOME=str(home), PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert (home / "runs/x/render/grid.png").is_file()
    assert not (cwd / "~").exists()


@pytest.mark.slow
def test_a_seed_run_and_then_a_photo_run_in_the_same_folder(tmp_path, networks, photo):
    workdir = tmp_path / "deep" / "work"
    settings = [f"--config.networks.{r}.path={path}" for r, path in networks.items()]
    settings += ["--config.method=guide", "--config.steps=3"]
    settings += ["--config.optimizer.learning_rate=0.01"]
    settings += ["--config.evaluate.others=3", "--config.evaluate.shown=2"]
    settings += ["--config.attack.directions="]  # the bundled ones don't fit
    done = program(f"--workdir={workdir}", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert str(workdir / "before_after.png") in done.stdout
    assert {path.name for path in workdir.iterdir()} == WRITTEN

    metrics = (workdir / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in metrics]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert all(np.isfinite(list(line.values())).all() for line in lines)

    before = tiny.flat(load_network(networks["generator"]))
    after = tiny.flat(load_network(workdir / "generator"))
    changed = {name for name in before if np.any(before[name] != after[name])}
    assert changed
    assert all(name.startswith("synthesis.") for name in changed)
    assert not any("noise_const" in name for name in changed)

    results = json.loads((workdir / "results.json").read_text())
    assert results["config"]["steps"] == 3
    (person,) = results["people"]
    measures = person["measures"]
    assert measures["people_kept"] == 3
    assert measures["lpips_person"] > 1e-5
    assert "inversion" not in person
    for name in ("id_kept", "lpips_kept", "lpips_person", "id_strangers"):
        assert np.isfinite(measures[name])
        assert f"{measures[name]:.3f}" in done.stdout
    with Image.open(workdir / "before_after.png") as image:
        assert image.width == 8 + 3 * 200  # before, after, target

    # Run again, with a photo and one step.
    again = [f"--config.source.image={photo}", "--config.steps=1"]
    again += ["--config.source.refine.steps=0"]
    again = [f"--workdir={workdir}", *settings, *again]
    done = program(*again, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {workdir} holds the result of seed 0 with")
    done = program(*again, "--config.overwrite=True", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in workdir.iterdir()} == WRITTEN
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 1
    results = json.loads((workdir / "results.json").read_text())
    inversion = results["people"][0]["inversion"]
    assert inversion.keys() == {"id", "lpips", "judges", "from_mean"}
    with Image.open(workdir / "before_after.png") as image:
        assert image.width == 8 + 4 * 200  # plus the photo
    replaced = tiny.flat(load_network(workdir / "generator"))
    assert any(np.any(replaced[name] != after[name]) for name in after)


@pytest.mark.slow
def test_a_3d_generator_forgets_the_person_in_a_photo(tmp_path, networks):
    shapes = tiny.GOAE_SETTINGS | {"groups": (1, 2, 2)}
    paths = networks | tiny.save(
        tmp_path,
        generator=tiny.eg3d(w_dim=8),
        encoder=tiny.random(lambda rngs: GOAE(**shapes, rngs=rngs)),
    )
    paths["lpips"] = "demo:lpips_alex.npz"
    photos = tmp_path / "people" / "Ann"
    photos.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("first.png", "second.png"):
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(photos / name)
    settings = [f"--config={ROOT / 'configs/eg3d_ffhq.py'}"]
    settings += [f"--config.networks.{r}.path={path}" for r, path in paths.items()]
    settings += ["--config.networks.detector.path=", f"--workdir={tmp_path / 'work'}"]
    settings += ["--config.steps=2", "--config.evaluate.fid_samples=0"]
    settings += [f"--config.source.image={photos.parent}"]
    settings += ["--config.source.scenario=out_of_domain", "--config.source.align=none"]
    settings += ["--config.evaluate.align=crop", "--config.evaluate.external=()"]
    settings += ["--config.evaluate.others=3", "--config.evaluate.shown=2"]
    done = program(*settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    work = tmp_path / "work"
    (person,) = json.loads((work / "results.json").read_text())["people"]
    for name in ("id", "id_others", "id_photo", "lpips_person"):
        assert np.isfinite(person["measures"][name])
    report = (work / "report.html").read_text()
    assert "From the sides, before and after" in report
    assert "Photos that were not used" in report

    attack = ["--mode=attack", "--config.attack.which=('replay','encoder','search_w')"]
    attack += ["--config.attack.require=0", "--config.attack.budgets=(2,)"]
    done = program(*settings, *attack, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "search_w" in (work / "attacks.json").read_text()

    turn = ["--mode=render", "--config.render.what=('turn',)"]
    done = program(*settings, *turn, "--config.render.frames=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(work / "render/turn.gif") as film:
        assert film.size == (2 * 32, 32)  # before and after


# Random moments at which a run is killed. More by hand:
# GUIDE_JAX_KILLS=30 pytest -m full -n 0 -s -k killed tests/test_main.py
KILLS = int(os.environ.get("GUIDE_JAX_KILLS", "3"))


def nine_steps(networks):
    """Returns settings of a run that stores a checkpoint every third of nine steps."""
    return [
        *(f"--config.networks.{r}.path={path}" for r, path in networks.items()),
        "--config.method=guide",
        "--config.steps=9",
        "--config.save_every=3",
        "--config.evaluate.others=3",
        "--config.evaluate.shown=2",
        "--config.attack.directions=",  # the bundled ones don't fit
    ]


class KilledRuns:
    """Starts main.py again and again in one folder, and kills it."""

    def __init__(self, folder, settings):
        self._folder, self._settings = folder, settings

    def start(self, name, *more, log=None):
        command = [sys.executable, "-u", ROOT / "main.py", f"--workdir={name}"]
        with (self._folder / f"{log or name}.log").open("wb") as log:
            return subprocess.Popen(
                [*command, *self._settings, *more],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                # Not the cache of compiled programs that the tests share.
                env=os.environ | ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": ""},
            )

    def kill_when(self, name, file, later=0.0):
        """Kills a run seconds after a file exists; returns whether it still ran."""
        process = self.start(name)
        deadline = time.monotonic() + 3600
        while not (self._folder / name / file).exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        try:
            process.wait(later)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait() == -signal.SIGKILL

    def finish(self, name):
        ended, log = self.start(name).wait(3600), self._folder / f"{name}.log"
        assert ended == 0, log.read_text()
        return log.read_text()

    def left(self, name):
        """Returns everything that must not depend on kills: tables and parameters."""
        people = self._folder / name / "people"
        parameters = {
            (person.name, leaf): array.tobytes()
            for person in people.iterdir()
            for leaf, array in tiny.flat(load_network(person / "generator")).items()
        }
        steps = {
            person.name: [
                json.loads(line)["step"]
                for line in (person / "metrics.jsonl").read_text().splitlines()
            ]
            for person in people.iterdir()
        }
        files = {
            str(path.relative_to(self._folder / name))
            for path in (self._folder / name).rglob("*")
            # Orbax chooses the first ones' names; TensorBoard's have the time of day.
            if "generator/" not in str(path) and "events.out" not in path.name
        }
        table = (self._folder / name / "results.csv").read_bytes()
        return table, parameters, steps, files


@pytest.mark.full
def test_a_run_killed_at_any_moment_ends_in_the_same_result(tmp_path, networks):
    settings = [*nine_steps(networks), "--config.source.count=3"]
    runs = KilledRuns(tmp_path, settings)
    runs.finish("whole")
    whole = runs.left("whole")
    assert whole[0].count(b"\n") == 4
    assert set(map(tuple, whole[2].values())) == {tuple(range(9))}
    compiled = set((tmp_path / "runs/cache/programs").glob("*-cache"))
    assert compiled

    # During training; after a generator is stored but not measured; between people.
    for file in ("seed_0/.checkpoint", "seed_1/generator", "seed_2"):
        assert runs.kill_when("killed", f"people/{file}"), "it ended too soon"
        assert not (tmp_path / "killed/people/seed_2/results.json").exists()
    assert "seed 0 is already done" in runs.finish("killed")
    assert runs.left("killed") == whole
    assert set((tmp_path / "runs/cache/programs").glob("*-cache")) == compiled

    # At random moments, of which none before the run starts to write.
    started = time.monotonic()
    assert runs.kill_when("timed", ".lock", 3600) is False  # it ends by itself
    seconds = time.monotonic() - started
    rng, done, name = np.random.default_rng(0), 0, "random_0"
    while done < KILLS:
        if runs.kill_when(name, ".lock", rng.uniform(0, seconds)):
            done += 1
            last = (tmp_path / f"{name}.log").read_bytes().split(b"\n")[-1][-80:]
            print(done, name, sorted(changing(tmp_path / name)), last)
        else:
            assert runs.left(name) == whole
            name = f"random_{done}"
    runs.finish(name)
    assert runs.left(name) == whole


@pytest.mark.full
def test_a_lost_process_loses_its_own_people_only(tmp_path, networks):
    """Three processes on this machine; one is killed while it trains its first."""
    settings = [*nine_steps(networks), "--config.source.count=5"]
    settings += ["--config.parallel.over=people", "--config.parallel.wait=15"]
    runs = KilledRuns(tmp_path, settings)
    runs.finish("one")

    def start_three():
        each = [f"--config.parallel.process={i}" for i in range(3)]
        return [
            runs.start("three", "--config.parallel.processes=3", mine, log=f"log_{i}")
            for i, mine in enumerate(each)
        ]

    def ended(process, i):
        code = process.wait(600)
        return code, (tmp_path / f"log_{i}.log").read_text()

    people = tmp_path / "three/people"
    three = start_three()
    while not (people / "seed_1/.checkpoint").exists():
        assert three[1].poll() is None, (tmp_path / "log_1.log").read_text()
        time.sleep(0.002)
    three[1].kill()
    assert ended(three[1], 1)[0] == -signal.SIGKILL
    code, log = ended(three[2], 2)
    assert code == 0, log
    assert "process 2 has done 1 people, 0 failed; process 0 writes the tables" in log
    code, log = ended(three[0], 0)
    assert code == 1, log
    assert (
        "error: 2 of 5 people are missing, because their process is not running: seed 1"
        " of process 1, seed 4 of process 1; run the same command again, with any"
        in log
    )
    done = {path.parent.name for path in people.glob("*/results.json")}
    assert done == {"seed_0", "seed_2", "seed_3"}
    assert (tmp_path / "three/results.csv").read_bytes().count(b"\n") == 4

    for i, process in enumerate(start_three()):
        code, log = ended(process, i)
        assert code == 0, log
        assert ("seed 2 is already done" in log) == (i == 2)
    assert runs.left("three") == runs.left("one")


def changing(folder):
    """Returns the newest file of a killed run, and what is half done."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    parts = [path for path in folder.rglob("*") if ".part" in path.name]
    return {str(path.relative_to(folder))[:60] for path in (newest, *parts)}


# Mistakes on the command line ---------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config.nonsense=1"], "no such setting: 'nonsense'; configs/default.py"),
        (["--config.nonsense.path=x"], "no such setting: 'nonsense'; configs/default"),
        (["--config.stpes=1"], 'Did you mean "steps"'),
        (["--config.steps=abc"], "--config.steps=abc: invalid literal for int()"),
        (["--config=none.py"], "--config: [Errno 2] No such file or directory: 'none"),
        (["--config=text.txt"], "--config: invalid syntax (text.txt, line 1)"),
        (["--nonsense=1"], "Unknown command line flag 'nonsense'"),
        (["steps=5"], "unknown argument 'steps=5'; settings look like --config.st"),
    ],
)
def test_command_line_mistakes_give_a_one_line_error(tmp_path, args, message):
    (tmp_path / "text.txt").write_text("not a config\n")
    done = program(*args, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_help_explains_the_program_and_its_flags(tmp_path):
    done = program("--help", cwd=tmp_path)
    assert done.stderr == ""
    for part in ("Makes a face generator forget", "--config:", "--workdir:"):
        assert part in done.stdout


# Mistakes in the settings -------------------------------------------------------------


@pytest.fixture
def mistake(tmp_path, networks, monkeypatch, capsys):
    """Runs `main.main` on a tiny config with changes; returns the lines on stderr."""

    def run(changes, config=None, code=2):
        if config is None:
            config = demo.get_config()
            config.evaluate.others, config.evaluate.shown = 3, 2
            config.attack.directions = ""  # the bundled ones don't fit
            for role, path in networks.items():
                config.networks[role].path = str(path)
        config.update_from_flattened_dict(changes)
        config.lock()
        before = set(tmp_path.rglob("*"))
        work = str(tmp_path / "work")
        given = SimpleNamespace(config=config, workdir=work, mode="unlearn")
        monkeypatch.setattr(main, "FLAGS", given)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as ended:
            main.main(["main.py"])
        assert ended.value.code == code
        out, err = capsys.readouterr()
        lines = err.splitlines()
        if code == 2:  # nothing was written or printed
            assert set(tmp_path.rglob("*")) == before
            assert out == ""
        assert code == 1 or lines[0].startswith("error: ")  # 1: training had started
        return lines

    return run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source.image": "none.jpg"}, "none.jpg: no such photo"),
        ({"source.image": "empty"}, "empty: no photos in it"),
        ({"source.scenario": "x"}, "config.source.scenario is 'x'; choose one"),
        ({"source.scenario": "in_domain"}, "'in_domain', which needs photos"),
        ({"source.scenario": "random", "source.image": "text.txt"}, "is 'random'"),
        ({"source.scenario": "out_of_domain", "source.image": "text.txt"},
         "text.txt: no such folder; 'out_of_domain' takes a folder"),
        ({"source.count": 0}, "config.source.count is 0; at least one person"),
        ({"source.seeds": (1, -2)}, "config.source.seeds holds -2; seeds are whole"),
        ({"source.image": "text.txt"}, "text.txt: not a readable image"),
        ({"networks.generator.path": "none.npz"}, "'none.npz': no such network; check"
         " --config.networks.generator.path"),
        ({"networks.judge.path": "demo:none.npz"}, "'demo:none.npz': no such network"),
        ({"networks.identity.path": "text.txt"}, "text.txt: not a network"),
        ({"networks.lpips.path": ""}, "names no network for: lpips; set --config"),
        ({"networks.generator.path": "16.npz"}, "16x16 images are too small for LPIPS"),
        ({"networks.generator.path": "cut.npz"}, "cut.npz: not a"),
        ({"networks.generator.path": "flipped.npz"}, "flipped.npz: not a"),
        ({"compute": "float16"}, "config.compute is 'float16'; choose one of f"),
        ({"precision": "tf32"}, "config.precision is 'tf32'; choose one of d"),
        ({"loss.lpips_resolution": 24}, "config.loss.lpips_resolution is 24; it must"),
        ({"loss.lpips_resolution": 16}, "16x16 images are too small for LPIPS"),
        ({"method": "forget"}, "config.method is 'forget'; choose one of g"),
        ({"erase.shrinkage": 0.0}, "config.erase.shrinkage is 0; it must be above"),
        ({"target.name": "mean"}, "config.target.name is 'mean'; choose one of a"),
        ({"steps": -1}, "config.steps is -1; it must not be negative"),
        ({"source.seed": -1}, "config.source.seed is -1"),
        ({"loss.adjacency.count": -1}, "config.loss.adjacency.count is -1"),
        ({"evaluate.others": 1}, "config.evaluate.others is 1; it must be at least 2"),
        ({"evaluate.shown": 4}, "evaluate.shown (4)"),
        ({"optimizer.learning_rate": 0.0}, "learning_rate is 0; it must be above 0"),
        ({"networks.judge.path": "demo:lpips_alex.npz"}, "is a lpips network, but"),
        ({"source.psi": 0.0}, "the person's code equals the mean code"),
        ({"source.variants": 5}, "config.source.variants is 5; there are at most 4"),
        ({"source.held_out": -1}, "config.source.held_out is -1; it must not be neg"),
        ({"evaluate.external": ("x",)}, "config.evaluate.external names 'x'; choose"),
    ],
)  # fmt: skip
def test_wrong_settings_give_a_one_line_error_and_write_nothing(
    mistake, tmp_path, networks, changes, message
):
    whole = networks["generator"].read_bytes()
    (tmp_path / "text.txt").write_text("hello\n")
    (tmp_path / "empty").mkdir()
    save_network(tmp_path / "16.npz", tiny.mobile(channels=(8, 6)))
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes(b ^ 255 for b in whole[middle:][:99])
    (tmp_path / "flipped.npz").write_bytes(flipped + whole[middle + 99 :])
    (line,) = mistake(changes)
    assert message in line


def test_an_encoder_for_another_generator_gives_a_one_line_error(
    mistake, networks, photo
):
    other = networks["encoder"].with_name("other_encoder.npz")
    changes = {"networks.encoder.path": str(other), "source.image": str(photo)}
    (line,) = mistake(changes)
    assert "the encoder outputs codes [5, 7] but the generator takes [8, 7]" in line


def test_an_unusable_results_folder_is_reported_before_training(mistake, tmp_path):
    (tmp_path / "work" / "generator").mkdir(parents=True)
    (line,) = mistake({})
    assert line.startswith(f"error: cannot write results to {tmp_path / 'work'} (")
    (tmp_path / "work" / "generator").rmdir()
    (tmp_path / "work").rmdir()
    (tmp_path / "work").write_text("a file")
    (line,) = mistake({})
    assert "cannot write results to" in line


def test_a_folder_in_place_of_an_image_is_reported_before_training(mistake, tmp_path):
    (tmp_path / "work" / "before_after.png").mkdir(parents=True)
    (line,) = mistake({})
    assert "before_after.png is a folder there" in line


def test_directions_that_do_not_fit_give_a_one_line_error(mistake):
    (line,) = mistake({"attack.directions": "demo:directions.npz"})
    assert "'smile' has shape [512], but the generator's codes have [8, 7]" in line
    (line,) = mistake({"attack.directions": "none.npz"})
    assert "none.npz: cannot be read as an .npz file of directions" in line


def test_unknown_strangers_give_a_one_line_error(mistake):
    where = {"attack.strangers": "generator:none.npz"}
    (line,) = mistake(where)
    assert "none.npz" in line
    assert "check --config.attack.strangers" in line


def test_a_verdict_below_the_aim_exits_with_code_3(mistake, monkeypatch):
    def low(*args):
        raise VerdictError("1 of 1 verdicts are below level 3")

    monkeypatch.setattr(main, "run", low)
    assert mistake({}, code=3) == ["error: 1 of 1 verdicts are below level 3"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(28, "No space left on device", "work/.checkpoint.part"),
            "work/.checkpoint.part: No space left on device; the same command resumes",
        ),
        (MemoryError(), "out of memory (MemoryError); end other programs, or lower"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating"),
            "out of memory (RESOURCE_EXHAUSTED: Out of memory allocating); end other",
        ),
    ],
)
def test_what_the_machine_lacks_gives_a_one_line_error(
    mistake, monkeypatch, error, line
):
    def fail(*args):
        raise error

    monkeypatch.setattr(main, "run", fail)
    (found,) = mistake({}, code=1)
    assert found.startswith(f"error: {line}")


def test_a_second_run_in_a_folder_gives_a_one_line_error(mistake, tmp_path):
    with locked(tmp_path / "work"):
        (line,) = mistake({})
    assert f"work is in use by process {os.getpid()} on " in line


def test_non_finite_measures_give_a_one_line_error(mistake, tmp_path, monkeypatch):
    broken = {"id": float("nan"), "no_face": 3}
    monkeypatch.setattr(
        evaluate.Evaluator,
        "compare",
        lambda *_: {"measures": broken, "judges": {}},
    )
    lines = mistake({"method": "guide", "steps": 1}, code=1)
    (line,) = [line for line in lines if line.startswith("error")]
    assert "measures are not finite: {'id': nan, 'no_face': 3," in line
    left = {path.name for path in (tmp_path / "work").iterdir()}
    assert left == {"generator", "codes.npz", "metrics.jsonl", "tensorboard"}


def test_a_nan_loss_gives_a_one_line_error_and_exit_code_1(
    mistake, tmp_path, monkeypatch
):
    def fail(*args, **kwargs):
        raise UnlearningError("the loss is nan at step 0")

    monkeypatch.setattr(trainer.Trainer, "__call__", fail)
    changes = {"method": "guide", "steps": 1}
    assert mistake(changes, code=1) == ["error: the loss is nan at step 0"]
    assert not (tmp_path / "work").exists()


def test_a_doubtful_photo_gives_a_one_line_error_and_exit_code_3(
    mistake, tmp_path, photo, monkeypatch
):
    # No two images are alike enough.
    known = Calibration(threshold=1.5, missed=0.0, auc=1.0)
    monkeypatch.setattr(evaluate, "calibration_of", lambda *_: known)
    changes = {"source.image": str(photo), "source.refine.steps": 0}
    (line,) = mistake(changes, code=3)
    assert line.startswith(f"error: {photo}: the reconstruction is not this person")
    work = tmp_path / "work"
    assert f"{work / 'pictures'} shows photo and reconstruction" in line
    assert {path.name for path in work.iterdir()} == {"pictures"}
    assert {path.name for path in (work / "pictures").iterdir()} == {
        "1_photo.png", "2_reconstruction_before.png"
    }  # fmt: skip


def test_a_failed_run_leaves_earlier_results_alone(mistake, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    for name in ("metrics.jsonl", "results.json", "before_after.png"):
        (work / name).write_text("earlier")

    def fail(*args, on_step, **kwargs):
        on_step(0, {"total": 1.0})
        raise UnlearningError("the loss is nan at step 1")

    monkeypatch.setattr(trainer.Trainer, "__call__", fail)
    mistake({}, code=1)
    for name in ("metrics.jsonl", "results.json", "before_after.png"):
        assert (work / name).read_text() == "earlier"


def test_ffhq_without_weights_says_how_to_get_them_all(mistake):
    config = ffhq.get_config()
    lines = mistake({}, config)
    assert "6 converted networks of config 'ffhq' are missing" in lines[0]
    networks = {k: v for k, v in config.networks.items() if k != "encoder"}
    for (role, network), line in zip(
        sorted(networks.items()), sorted(lines[1:-1]), strict=True
    ):
        files = " and ".join(network.files)
        assert line.startswith(f"  {role}: {network.path}, from {files} (")
        assert "https://" in line
    assert lines[-1].endswith(
        "python -m convert pnet.npy rnet.npy onet.npy ffhq.pkl model_ir_se50.pth"
        " pt_inception-2015-12-05-6726825d.pth CurricularFace_Backbone.pth"
        " vgg16-397923af.pth vgg.pth --out weights"
    )


# The library --------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["guide_jax", "guide_jax.experiment.modes"])
def test_library_imports_neither_torch_nor_tensorflow(module):
    code = (
        f"import sys, {module}\n"
        "print(*({'torch', 'tensorflow', 'convert', 'distill'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
