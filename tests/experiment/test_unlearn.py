"""Runs for one person: what they do, skip, resume and reject."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from jobs import SEED, job, record_trainings, settings, without_seconds

from guide_jax.config_types import Compute, LossWeights, PairWeights, Sampling, Training
from guide_jax.console import Console
from guide_jax.errors import InputError, UnlearningError
from guide_jax.experiment import evaluate, unlearn
from guide_jax.experiment.evaluate import EvaluateJob
from guide_jax.metrics import judges
from guide_jax.models.generator import z_of_seed
from guide_jax.people import Person
from guide_jax.storage import run_folder
from guide_jax.storage.network_file import read_about
from guide_jax.storage.run_folder import PersonFolder
from guide_jax.storage.step_log import StepLog
from guide_jax.training.sharding import DeviceGroup


@pytest.fixture(scope="module")
def first(networks, tmp_path_factory):
    """Returns a job, and the folder and the results entry of its first person."""
    work, folder = job(networks), tmp_path_factory.mktemp("first")
    return work, folder, work(SEED, PersonFolder(folder))


class Killed(BaseException):
    """Stands for a kill signal: nothing catches it."""


def copy_of(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


# What one person's run does ----------------------------------------------------------


def test_every_training_field_reaches_the_trainer(networks, monkeypatch, tmp_path):
    config = settings(
        **{
            "seed": 11,
            "steps": 12,
            "save_every": 13,
            "gradient_accumulation": "always",
            "compute": "bfloat16",
            "precision": "high",
            "optimizer.learning_rate": 0.013,
            "loss.psi": 0.14,
            "loss.lpips_resolution": 4,
            "loss.local.weight": 1.5,
            "loss.local.mse_weight": 1.6,
            "loss.local.lpips_weight": 1.7,
            "loss.local.id_weight": 1.8,
            "loss.adjacency.weight": 2.5,
            "loss.adjacency.mse_weight": 2.6,
            "loss.adjacency.lpips_weight": 2.7,
            "loss.adjacency.id_weight": 2.8,
            "loss.adjacency.count": 3,
            "loss.adjacency.alpha_max": 3.5,
            "loss.global_.weight": 4.5,
            "loss.global_.count": 5,
            "source.codes_per_step": 6,
        }
    )
    init_args, call_args = {}, {}

    class Recorder:
        def __init__(self, generator, loss_networks, settings, **kwargs):
            init_args.update(
                kwargs, networks=(generator, *loss_networks), settings=settings
            )

        def __call__(self, w_u, w_target, **kwargs):
            call_args.update(kwargs)
            raise UnlearningError("enough")

    monkeypatch.setattr(unlearn, "Trainer", Recorder)
    devices, console = DeviceGroup(), Console(4)
    work = job(networks, config, devices=devices, console=console)
    with pytest.raises(UnlearningError, match="enough"):
        work(SEED, PersonFolder(tmp_path))
    assert init_args == {
        "networks": tuple(networks[x] for x in ("generator", "lpips", "identity")),
        "settings": Training(
            steps=12,
            seed=11,
            learning_rate=0.013,
            weights=LossWeights(
                PairWeights(mse=1.6, lpips=1.7, identity=1.8, total=1.5),
                PairWeights(mse=2.6, lpips=2.7, identity=2.8, total=2.5),
                4.5,
            ),
            sampling=Sampling(3, 5, alpha_max=3.5, psi=0.14),
            compute=Compute("bfloat16", "high", 4),
            gradient_accumulation="always",
            save_every=13,
            codes_per_step=6,
        ),
        "devices": devices,
        "console": console,
    }
    assert call_args["state"].every == 13


def test_a_sampled_person_is_the_mapped_z_of_the_seed(first, networks):
    _, folder, _ = first
    z = z_of_seed(5, 8)
    w = tiny.jitted(networks["generator"].mapping, lambda m, z: m(z), z)
    with np.load(folder / "codes.npz") as codes:
        np.testing.assert_allclose(codes["w_u"], w, rtol=1e-5, atol=1e-5)
        assert codes["tests"].shape == (0, 4, 7)


def test_results_metrics_and_images_are_written(first):
    _, folder, results = first
    stored = json.loads((folder / "results.json").read_text())
    assert stored["people"] == [results]
    assert stored["schema"] == 4
    assert results["calibration"] == {"ir": "not measured"}
    assert stored["mean"]["measures"]["id"] == results["measures"]["id"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    assert [line["step"] for line in lines] == list(range(6))
    assert lines[0]["seconds"] > 0  # includes the compilation
    names = sorted(path.name for path in (folder / "pictures").iterdir())
    assert names == ["1_before.png", "2_after.png", "3_target.png", "others"]
    assert not (folder / ".checkpoint").exists()
    assert not list(folder.glob("*.part"))
    with np.load(folder / "embeddings.npz") as faces:
        cosine = float(faces["before"] @ faces["after"])
    assert results["measures"]["id"] == pytest.approx(cosine, abs=1e-6)


def test_fid_and_an_aligning_judge_are_used_when_the_config_says_so(
    networks, tmp_path, monkeypatch
):
    monkeypatch.setattr(judges, "detect", lambda mtcnn, image: [])
    more = {"inception": tiny.inception(), "detector": "mtcnn"}
    changes = {"evaluate.fid_samples": 5, "evaluate.align": "mtcnn"}
    config = settings(cache=str(tmp_path / "cache"), **changes)
    work = job(networks | more, config)
    results = work(SEED, PersonFolder(tmp_path / "work"))
    assert results["measures"]["fid_samples"] == 5
    assert results["measures"]["fid_pre"] >= 0
    assert "delta_fid_real" not in results["measures"]
    assert (results["measures"]["id"], results["measures"]["id_kept"]) == (None, None)
    assert results["measures"]["no_face"] == 2 + 2 * 4
    text = (tmp_path / "work" / "results.json").read_text()
    assert json.loads(text)["people"][0]["measures"]["id"] is None


def test_an_aligning_judge_of_dlib_s_network_is_rejected(networks):
    dlib = networks | {"judge": tiny.dlib_resnet(), "detector": "mtcnn"}
    config = settings(**{"evaluate.align": "mtcnn"})
    with pytest.raises(InputError, match="dlib's network takes another crop; use 'cr"):
        job(dlib, config, EvaluateJob)


# What is reused ----------------------------------------------------------------------


def test_a_finished_person_is_skipped(first, monkeypatch, capsys):
    work, folder, results = first
    trainings = record_trainings(monkeypatch, work)
    monkeypatch.setattr(work._evaluate, "measure", None)
    assert work(SEED, PersonFolder(folder)) == results
    assert trainings == []
    assert (
        f"seed 5 is already done with these settings: {folder}"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("change", [{"evaluate.others": 3}, {"evaluate.seed": 9}])
def test_changed_measure_settings_need_no_new_training(
    first, networks, tmp_path, monkeypatch, change
):
    _, folder, results = first
    folder = copy_of(folder, tmp_path)
    work = job(networks, settings(**change))
    trainings = record_trainings(monkeypatch, work)
    again = work(SEED, PersonFolder(folder))
    assert trainings == []
    assert again["measures"]["id"] == pytest.approx(results["measures"]["id"], abs=1e-6)
    assert again["measures"]["lpips_kept"] != results["measures"]["lpips_kept"]


def contents(folder):
    return {x: x.read_bytes() for x in folder.rglob("*") if x.is_file()}


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"steps": 7}, "config.steps is 6 there, 7 now"),
        ({"seed": 3}, "config.seed is 0 there, 3 now"),
        ({"source.psi": 0.5}, "config.source.psi is 1.0 there, 0.5 now"),
    ],
)
def test_results_of_other_settings_are_replaced_only_if_asked_for(
    first, networks, tmp_path, change, differs
):
    _, folder, results = first
    folder = copy_of(folder, tmp_path)
    before = contents(folder)
    with pytest.raises(InputError) as caught:
        job(networks, settings(**change))(SEED, PersonFolder(folder))
    assert str(caught.value) == (
        f"{folder} holds the result of seed 5 with other settings ({differs}); choose"
        " another --workdir, or replace it with --config.overwrite=True"
    )
    assert contents(folder) == before
    work = job(networks, settings(overwrite=True, **change))
    again = work(SEED, PersonFolder(folder))
    assert again["measures"]["lpips_person"] != results["measures"]["lpips_person"]
    assert again["ids"]["training"] != results["ids"]["training"]


def test_results_of_other_people_and_networks_are_not_replaced(
    first, networks, tmp_path, monkeypatch
):
    _, folder, _ = first
    folder = copy_of(folder, tmp_path)
    before = contents(folder)
    other = Person("seed_6", "seed 6", seed=6)
    with pytest.raises(InputError, match=r"\(the person is seed 5 there, seed 6 now\)"):
        job(networks)(other, PersonFolder(folder))
    changed = networks | {"identity": tiny.identity(7)}
    with pytest.raises(
        InputError, match=r"\(config.networks.identity has other weights\)"
    ):
        job(changed)(SEED, PersonFolder(folder))
    assert contents(folder) == before
    work = job(changed, settings(overwrite=True))
    trainings = record_trainings(monkeypatch, work)
    work(SEED, PersonFolder(folder))
    assert len(trainings) == 1


def test_evaluate_measures_again_without_training(first, tmp_path, monkeypatch):
    work, folder, results = first
    folder = copy_of(folder, tmp_path)
    (folder / "results.json").unlink()
    trainings = record_trainings(monkeypatch, work)
    assert without_seconds(
        work._evaluate(SEED, PersonFolder(folder))
    ) == without_seconds(results)
    assert trainings == []
    shutil.rmtree(folder / "generator")
    with pytest.raises(InputError, match="no complete result is stored there"):
        work._evaluate(SEED, PersonFolder(folder))


def test_evaluate_rejects_results_of_another_person_or_generator(first, networks):
    work, folder, _ = first
    other = Person("seed_6", "seed 6", seed=6)
    with pytest.raises(InputError, match="holds the result of seed 5, which is not"):
        work._evaluate(other, PersonFolder(folder))
    changed = job(networks | {"generator": tiny.generator(8, seed=9)})
    with pytest.raises(InputError, match="holds the result of seed 5, which is not"):
        changed._evaluate(SEED, PersonFolder(folder))
    assert (folder / "results.json").exists()


def test_measuring_again_keeps_the_training_settings(first, networks, tmp_path):
    _, folder, _ = first
    folder = copy_of(folder, tmp_path)
    work = job(networks, settings(steps=99, **{"evaluate.others": 3}))
    results = work._evaluate(SEED, PersonFolder(folder))
    assert results["measures"]["people_kept"] == 3
    config = json.loads((folder / "results.json").read_text())["config"]
    assert config["steps"] == 6
    assert config["evaluate"]["others"] == 3


def drop_checkpoint(folder):
    PersonFolder(folder).train_state("", 0).drop()


def test_codes_of_another_training_are_not_measured(
    first, networks, tmp_path, monkeypatch
):
    work, folder, results = first
    folder = copy_of(folder, tmp_path)
    other = Person("seed_6", "seed 6", seed=6)

    def kill(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save_network", kill)
        replacing = job(networks, settings(overwrite=True))
        with pytest.raises(Killed):  # after saving codes, before the generator
            replacing(other, PersonFolder(folder))
    drop_checkpoint(folder)
    with pytest.raises(InputError, match="a different training than generator"):
        work._evaluate(SEED, PersonFolder(folder))
    trainings = record_trainings(monkeypatch, work)
    assert without_seconds(work(SEED, PersonFolder(folder))) == without_seconds(results)
    assert len(trainings) == 1


def test_results_are_removed_before_the_files_they_describe_change(
    first, tmp_path, monkeypatch
):
    work, folder, results = first
    folder = copy_of(folder, tmp_path)

    def kill(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(evaluate.pictures, "before_after", kill)
        with pytest.raises(Killed):
            work._evaluate(SEED, PersonFolder(folder))
    assert not (folder / "results.json").exists()
    assert without_seconds(work(SEED, PersonFolder(folder))) == without_seconds(results)


def test_a_damaged_generator_is_trained_again(first, tmp_path, monkeypatch):
    work, folder, results = first
    folder = copy_of(folder, tmp_path)
    (folder / "results.json").unlink()
    for file in (folder / "generator" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    trainings = record_trainings(monkeypatch, work)
    assert without_seconds(work(SEED, PersonFolder(folder))) == without_seconds(results)
    assert len(trainings) == 1


# Interrupted runs --------------------------------------------------------------------


@pytest.mark.parametrize("where", ["step", "save_network", "measure", "results"])
def test_an_interrupted_run_resumes_to_the_same_results(
    first, networks, tmp_path, monkeypatch, where
):
    _, whole, results = first
    work = job(networks)

    def kill(*args, **kwargs):
        raise Killed

    if where == "step":
        call = StepLog.__call__

        def kill_at_step_5(self, step, terms):
            return kill() if step == 5 else call(self, step, terms)

        monkeypatch.setattr(StepLog, "__call__", kill_at_step_5)
    elif where == "save_network":
        monkeypatch.setattr(run_folder, "save_network", kill)
    elif where == "measure":
        monkeypatch.setattr(PersonFolder, "clean_up", kill)
    else:
        monkeypatch.setattr(run_folder, "write_json", kill)
    with pytest.raises(Killed):
        work(SEED, PersonFolder(tmp_path))
    assert not (tmp_path / "results.json").exists()
    monkeypatch.undo()
    trainings = record_trainings(monkeypatch, work)
    steps = []
    call = StepLog.__call__
    monkeypatch.setattr(
        StepLog, "__call__", lambda s, i, t: steps.append(i) or call(s, i, t)
    )
    again = work(SEED, PersonFolder(tmp_path))
    assert without_seconds(again) == without_seconds(results)
    assert steps == {"step": [4, 5], "save_network": [4, 5]}.get(where, [])
    assert len(trainings) == (1 if steps else 0)
    for name in ("metrics.jsonl", "embeddings.npz", "codes.npz"):
        if name != "metrics.jsonl":
            assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
        else:
            resumed, uninterrupted = (
                [json.loads(line) for line in (f / name).read_text().splitlines()]
                for f in (tmp_path, whole)
            )
            assert [without_seconds(x) for x in resumed] == [
                without_seconds(x) for x in uninterrupted
            ]
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in whole.iterdir()}


@pytest.fixture
def interrupted(networks, tmp_path, monkeypatch):
    """Returns the folder of a run that was killed after its checkpoint of 4 steps."""

    def kill_at_step_5(self, step, terms):
        if step == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "__call__", kill_at_step_5)
        with pytest.raises(Killed):
            job(networks)(SEED, PersonFolder(tmp_path))
    assert (tmp_path / ".checkpoint").exists()
    return tmp_path


@pytest.fixture
def steps(monkeypatch):
    """Returns a list to which each further step's index is added."""
    taken, call = [], StepLog.__call__
    monkeypatch.setattr(
        StepLog, "__call__", lambda s, i, t: taken.append(i) or call(s, i, t)
    )
    return taken


def test_an_interrupted_run_is_not_continued_with_other_settings(
    networks, interrupted, steps
):
    before = contents(interrupted)
    with pytest.raises(InputError) as caught:
        job(networks, settings(seed=1))(SEED, PersonFolder(interrupted))
    assert str(caught.value) == (
        f"{interrupted} holds the checkpoint of an interrupted training with other"
        " settings (config.seed is 0 there, 1 now); finish that one, choose another"
        " --workdir, or replace it with --config.overwrite=True"
    )
    assert contents(interrupted) == before
    job(networks, settings(seed=1, overwrite=True))(SEED, PersonFolder(interrupted))
    assert steps == list(range(6))


@pytest.mark.parametrize("name", ["code", "jax"])
def test_an_interrupted_run_is_not_continued_by_another_version(
    networks, interrupted, steps, monkeypatch, name
):
    now = unlearn.versions() | {name: "another"}
    monkeypatch.setattr(unlearn, "versions", lambda: now)
    with pytest.raises(
        InputError, match=rf"of another version.*\({name} is '.*' there"
    ):
        job(networks)(SEED, PersonFolder(interrupted))
    job(networks, settings(overwrite=True))(SEED, PersonFolder(interrupted))
    assert steps == list(range(6))


def test_finishing_one_training_keeps_another_one_s_checkpoint(
    first, networks, steps, tmp_path
):
    """The folder holds one training's generator and another one's checkpoint."""
    _, done, results = first
    folder = copy_of(done, tmp_path)
    (folder / "results.json").unlink()
    store = PersonFolder(folder).train_state("another training", 2)
    store.save({"step": np.asarray(2)})
    again = job(networks)(SEED, PersonFolder(folder))
    assert without_seconds(again) == without_seconds(results)
    assert store.found() == ("another training", {})
    assert steps == []


def test_results_of_a_run_with_several_people_are_not_the_folder_s_person_s(
    many, tmp_path
):
    """All three runs use the same folder."""
    many(**{"source.seed": 5})
    many(**{"source.count": 2})
    work = tmp_path / "work"
    assert PersonFolder(work).results() is None
    (work / "results.json").write_text("[]")
    assert PersonFolder(work).results() is None
    with pytest.raises(InputError, match="the person is seed 5 there, seed 0 now"):
        many(**{"source.seed": 0})
    summary = many(**{"source.seed": 0, "overwrite": True})
    assert summary == json.loads((work / "results.json").read_text())
    assert [entry["title"] for entry in summary["people"]] == ["seed 0"]
    assert read_about(work / "generator")["person"] == "seed 0"


# What version 0.1.0 wrote -------------------------------------------------------------

OLD = Path(__file__).parents[1] / "data" / "run_0_1_0"


def test_a_result_of_0_1_0_is_measured_again_without_training(
    first, tmp_path, monkeypatch
):
    work, _, results = first
    folder = copy_of(OLD / "done", tmp_path)
    old = json.loads((folder / "results.json").read_text())
    trainings = record_trainings(monkeypatch, work)
    again = work(SEED, PersonFolder(folder))
    assert trainings == []
    assert again["ids"] == results["ids"]
    assert again["measures"].keys() - old.keys() == {"lpips_target"}  # since 0.1.0
    for name in again["measures"].keys() & old.keys():
        assert again["measures"][name] == pytest.approx(old[name], abs=1e-5), name
    assert work._evaluate(SEED, PersonFolder(folder))["measures"] == again["measures"]


def test_an_interrupted_training_of_0_1_0_resumes(first, tmp_path, monkeypatch):
    work, _, results = first
    folder = copy_of(OLD / "interrupted", tmp_path)
    steps, call = [], StepLog.__call__
    monkeypatch.setattr(
        StepLog, "__call__", lambda s, i, t: steps.append(i) or call(s, i, t)
    )
    resumed = work(SEED, PersonFolder(folder))
    assert steps == [4, 5]
    for name, value in results["measures"].items():
        assert resumed["measures"][name] == pytest.approx(value, abs=1e-5), name
