"""Runs for one person and for several: what they do, skip, resume and reject."""

import csv
import io
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from configs import default
from guide_jax.config import read
from guide_jax.config_types import Compute, LossWeights, PairWeights, Sampling, Training
from guide_jax.console import Console
from guide_jax.errors import DoubtError, InputError, UnlearningError
from guide_jax.experiment import evaluate, unlearn
from guide_jax.experiment import modes as experiment
from guide_jax.experiment.evaluate import EvaluateJob
from guide_jax.experiment.unlearn import UnlearnJob
from guide_jax.latents import LatentFinder
from guide_jax.metrics import judges
from guide_jax.metrics.calibration import Calibration
from guide_jax.models.generator import z_of_seed
from guide_jax.people import Person
from guide_jax.storage import run_folder
from guide_jax.storage.network_file import read_about
from guide_jax.storage.run_folder import PersonFolder
from guide_jax.storage.step_log import StepLog
from guide_jax.training.sharding import DeviceGroup

SEED = Person("seed_5", "seed 5", seed=5)


def settings(**changes):
    config = default.get_config()
    config.steps, config.save_every = 6, 2
    config.parallel.devices = 1
    config.evaluate.others, config.evaluate.shown = 4, 2
    config.optimizer.learning_rate = 0.01
    config.source.refine.steps = 0  # tests/test_inversion.py tests refinement
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def networks():
    loss = tiny.loss_networks()
    return {
        "generator": tiny.generator(8),
        "encoder": tiny.encoder(num_ws=4),
        "lpips": loss.lpips,
        "identity": loss.identity,
        "judge": tiny.identity(1),
    }


def job(networks, config=None, make=UnlearnJob, **more):
    """Returns the callable that a mode runs for each person."""
    return make(read(config or settings()), tiny.networks(**networks), **more)


@pytest.fixture(scope="module")
def first(networks, tmp_path_factory):
    """Returns a job, and the folder and the results entry of its first person."""
    work, folder = job(networks), tmp_path_factory.mktemp("first")
    return work, folder, work(SEED, PersonFolder(folder))


class Killed(BaseException):
    """Stands for a kill signal: nothing catches it."""


def without_seconds(results):
    return {name: value for name, value in results.items() if name != "seconds"}


def record_trainings(monkeypatch, work):
    """Returns a list to which each further training of `work` is added."""
    trainings = []
    train = work._train

    def recording(*args, **kwargs):
        trainings.append(args)
        return train(*args, **kwargs)

    monkeypatch.setattr(work, "_train", recording)
    return trainings


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
    assert stored["schema"] == 3
    assert results["calibration"] == {"ir": "not measured"}
    assert stored["mean"]["measures"]["id"] == results["measures"]["id"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    assert [line["step"] for line in lines] == list(range(6))
    assert lines[0]["seconds"] > 0  # includes the compilation
    names = sorted(path.name for path in (folder / "pictures").iterdir())
    assert names == ["1_before.png", "2_after.png", "3_target.png"]
    assert not (folder / ".checkpoint").exists()
    assert not list(folder.glob("*.part"))
    with np.load(folder / "embeddings.npz") as faces:
        cosine = float(faces["before"] @ faces["after"])
    assert results["measures"]["id"] == pytest.approx(cosine, abs=1e-6)


def test_a_photo_is_compared_with_its_reconstruction_and_other_photos_are_tested(
    networks, tmp_path
):
    photos = [save_noise(tmp_path / f"{i}.png", i) for i in range(3)]
    work = job(networks)
    person = Person("a", "a", photos=(photos[0],), tests=tuple(photos[1:]))
    folder = PersonFolder(tmp_path / "work")
    results = work(person, folder)
    assert results["inversion"].keys() == {"id", "lpips", "judges", "from_mean"}
    for name in ("id_others", "id_photo", "id_photo_others"):
        assert -1 <= results["measures"][name] < 1
    with np.load(tmp_path / "work" / "codes.npz") as codes:
        assert codes["tests"].shape == (2, 4, 7)
        assert np.any(codes["tests"][0] != codes["tests"][1])
        assert codes["w_u"].shape == (1 + 4, 4, 7)
        w_u = codes["w_u"]
    # The measures are of the photo's own code, not of its altered copies'.
    prior = work._latents.prior
    assert results["inversion"]["from_mean"] == pytest.approx(prior.distance(w_u)[0])
    stored = folder.load()
    judge = judges.cropping_judge(networks["judge"], 10)
    images = work._evaluate._evaluator.images
    before, after = (
        judge(images(generator, w_u[:1]))
        for generator in (networks["generator"], stored.generator)
    )
    photo = judge(work._latents.read(person.photos)[0].images)
    for name, a, b in (("id", before, after), ("id_photo", photo, after)):
        wanted = float(a.embeddings[0] @ b.embeddings[0])
        assert results["measures"][name] == pytest.approx(wanted, abs=1e-5)
    assert (stored.record.photos, stored.record.tests) == (1, ["1.png", "2.png"])
    # `evaluate` reads the photos again.
    again = work._evaluate(person, folder)
    for name, value in results["measures"].items():
        assert again["measures"][name] == pytest.approx(value, abs=1e-6), name
    # Other test photos make it a different run.
    trainings = []
    work._train = lambda *args, **kwargs: trainings.append(args) or 1 / 0
    with pytest.raises(ZeroDivisionError):
        work(person._replace(tests=()), PersonFolder(tmp_path / "work"))
    assert trainings


def save_noise(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_unusable_test_photos_are_noted_and_left_out(networks, tmp_path):
    photo, test = (save_noise(tmp_path / f"{i}.png", i) for i in range(2))
    bad = tmp_path / "bad.png"
    bad.write_text("no photo")
    person = Person("a", "a", photos=(photo,), tests=(bad, test))
    results = job(networks)(person, PersonFolder(tmp_path / "w"))
    assert results["notes"][0].startswith(f"left out: {bad}: not a readable image")
    assert "id_others" in results["measures"]
    with np.load(tmp_path / "w" / "codes.npz") as codes:
        assert codes["tests"].shape == (1, 4, 7)


def test_several_photos_are_forgotten_together(networks, tmp_path, monkeypatch):
    photos = tuple(save_noise(tmp_path / f"{i}.png", i) for i in range(3))
    bad = tmp_path / "bad.png"
    bad.write_text("no photo")
    work, folder = job(networks, settings(steps=2)), PersonFolder(tmp_path / "work")
    person = Person("a", "a", photos=(photos[0], bad, photos[1]), tests=photos[2:])
    results = work(person, folder)
    (note,) = [note for note in results["notes"] if note.startswith("left out")]
    assert note.startswith(f"left out: {bad}: not a readable image")
    stored = folder.load()
    assert (stored.record.photos, stored.record.tests) == (2, ["2.png"])
    assert stored.codes.w_u.shape == (2, 4, 7)
    judge = judges.cropping_judge(networks["judge"], 10)
    images = work._evaluate._evaluator.images
    before = judge(images(networks["generator"], stored.codes.w_u))
    after = judge(images(stored.generator, stored.codes.w_u))
    cosines = np.sum(before.embeddings * after.embeddings, axis=1)
    assert results["measures"]["id"] == pytest.approx(cosines.mean(), abs=1e-5)
    names = [path.name for path in sorted((folder.path / "pictures").iterdir())]
    assert names == [
        "1_photo.png", "2_reconstruction_before.png", "3_after.png", "4_target.png",
        "5_test_photo.png", "6_reconstruction_before.png", "7_after.png",
    ]  # fmt: skip
    # The photo that was left out can be read now.
    who = work._evaluate.who(person)
    save_noise(bad, 7)
    with pytest.raises(InputError, match="holds the result of a, which is not a with"):
        work._evaluate(person, folder)
    monkeypatch.setattr(work._evaluate, "who", lambda person: who)
    with pytest.raises(InputError, match="a: 3 photos can be read, but 2 were used"):
        work._evaluate(person, folder)


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


# Doubts about photos -----------------------------------------------------------------


@pytest.fixture
def calibrated(networks, monkeypatch):
    """Returns a function that makes a job whose judge knows its threshold."""

    def make(threshold, **changes):
        known = Calibration(threshold, missed=0.25, auc=0.9)
        monkeypatch.setattr(
            evaluate,
            "calibration_of",
            lambda name, network: known if name == evaluate.MAIN_JUDGE else None,
        )
        return job(networks, settings(**changes))

    return make


@pytest.fixture
def stranger(networks, monkeypatch):
    """Returns a function: images -> embeddings, which replaces the judge."""

    def replace(embed):
        def judge(images):
            embeddings = np.array([embed(image) for image in images], np.float32)
            return judges.Faces(embeddings, np.ones(len(images), bool))

        monkeypatch.setattr(judges, "cropping_judge", lambda *args: judge)

    return replace


def save_grey(path, level):
    Image.new("RGB", (8, 8), (level,) * 3).save(path)
    return path


# Photos of these levels of grey show one person, brighter ones another person, and all
# that the generator makes a third.
DARK, DIM, BRIGHT = 10, 30, 250


def by_brightness(image):
    """Returns an embedding of a grey image; other images show somebody else."""
    if np.ptp(image) > 1e-3:
        return [0, 0, 1]
    return [1, 0, 0] if image.mean() < 0 else [0, 1, 0]


def lenient(image):
    """Returns the same but takes what the generator makes for the dark photos."""
    seen = by_brightness(image)
    return [1, 0, 0] if seen[2] else seen


def test_a_reconstruction_of_somebody_else_stops_before_training(
    calibrated, stranger, tmp_path, monkeypatch
):
    stranger(by_brightness)
    work = calibrated(0.5)
    trainings = record_trainings(monkeypatch, work)
    photo = save_grey(tmp_path / "dark.png", DARK)
    person, folder = Person("a", "a", photos=(photo,)), PersonFolder(tmp_path / "w")
    with pytest.raises(DoubtError) as caught:
        work(person, folder)
    text = str(caught.value)
    assert text.startswith(
        f"{photo}: the reconstruction is not this person (similarity 0.00 by ir: same"
        " person above 0.50, which 1 %"
    )
    assert "\n" not in text
    assert "--config.source.accept_doubt=True" in text
    assert str(folder.path / "pictures") in text
    assert trainings == []
    assert [path.name for path in folder.path.iterdir()] == ["pictures"]
    shown, made = sorted((folder.path / "pictures").iterdir())
    assert shown.name == "1_photo.png"
    assert made.name == "2_reconstruction_before.png"
    with Image.open(shown) as image:
        assert image.getpixel((4, 4)) == (DARK,) * 3
    with Image.open(made) as image:
        assert len(image.getcolors(999)) > 1  # not the photo


def test_a_photo_of_somebody_else_stops_before_training(
    calibrated, stranger, tmp_path, monkeypatch
):
    stranger(lenient)
    work = calibrated(0.5)
    trainings = record_trainings(monkeypatch, work)
    photos = [
        save_grey(tmp_path / f"{level}.png", level) for level in (DARK, DIM, BRIGHT)
    ]
    person = Person("a", "a", photos=tuple(photos[:2]), tests=(photos[2],))
    with pytest.raises(DoubtError) as caught:
        work(person, PersonFolder(tmp_path / "w"))
    text = str(caught.value)
    assert text.startswith(
        f"{photos[2]}: seems to show somebody else than the person's other photos"
        " (similarity 0.00 at most, by ir: same person above 0.50"
    )
    for photo in photos[:2]:
        assert str(photo) not in text
    assert trainings == []


def test_photos_of_one_person_are_forgotten_without_a_doubt(
    calibrated, stranger, tmp_path, capsys
):
    stranger(lenient)
    dark, dim = (save_grey(tmp_path / f"{level}.png", level) for level in (DARK, DIM))
    person = Person("a", "a", photos=(dark,), tests=(dim,))
    results = calibrated(0.5, steps=1)(person, PersonFolder(tmp_path / "w"))
    assert results["notes"] == []
    assert "somebody else" not in capsys.readouterr().out


def test_an_accepted_doubt_is_noted_and_training_goes_on(
    calibrated, stranger, tmp_path, capsys
):
    stranger(by_brightness)
    work = calibrated(0.5, steps=1, **{"source.accept_doubt": True})
    photo = save_grey(tmp_path / "dark.png", DARK)
    folder = PersonFolder(tmp_path / "w")
    results = work(Person("a", "a", photos=(photo,)), folder)
    assert results["calibration"] == {"ir": Calibration(0.5, 0.25, 0.9).describe()}
    assert f"note: {photo}: the reconstruction is not" in capsys.readouterr().out
    assert results["inversion"]["id"] == pytest.approx(0, abs=1e-6)
    (note,) = results["notes"]
    assert note.startswith("identity similarity between photo and reconstruction is on")
    assert "same person above 0.50" in note


def test_sampled_people_and_uncalibrated_judges_give_no_doubts(
    networks, calibrated, stranger, tmp_path
):
    stranger(by_brightness)
    photo = save_grey(tmp_path / "dark.png", DARK)
    finder = LatentFinder(read(settings()), tiny.networks(**networks))
    with_photo = finder(Person("a", "a", photos=(photo,)))
    uncalibrated = job(networks, make=EvaluateJob)
    assert uncalibrated.doubts(with_photo) == []
    work = calibrated(0.5)._evaluate
    assert work.doubts(finder(SEED)) == []
    assert len(work.doubts(with_photo)) == 1


def test_the_first_calibrated_judge_decides(networks, monkeypatch, tmp_path):
    """The main judge is not calibrated; to the external one, each photo is another."""

    def different(images):
        seen = np.eye(3, dtype=np.float32)[np.arange(len(images)) % 3]
        return judges.Faces(seen, np.ones(len(images), bool))

    monkeypatch.setattr(judges, "chosen", lambda names, folder: ("facenet",))
    monkeypatch.setattr(judges, "external_judge", lambda name, folder: different)
    monkeypatch.setattr(judges, "files_of", lambda names, folder: [])
    work = job(networks, make=EvaluateJob)
    photos = tuple(save_grey(tmp_path / f"{level}.png", level) for level in (DARK, DIM))
    finder = LatentFinder(read(settings()), tiny.networks(**networks))
    lines = work.doubts(finder(Person("a", "a", photos=photos)))
    assert len(lines) == 2  # one for each photo, which the other does not resemble
    for path, line in zip(photos, lines, strict=True):
        assert line.startswith(f"{path}: seems to show somebody else")
        assert "by facenet: same person above 0.49" in line


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


@pytest.mark.parametrize("change", [{"steps": 7}, {"seed": 3}, {"source.psi": 0.5}])
def test_changed_training_settings_train_again(first, networks, tmp_path, change):
    _, folder, results = first
    folder = copy_of(folder, tmp_path)
    again = job(networks, settings(**change))(SEED, PersonFolder(folder))
    assert again["measures"]["lpips_person"] != results["measures"]["lpips_person"]
    assert again["ids"]["training"] != results["ids"]["training"]


def test_changed_network_weights_train_again(first, networks, tmp_path, monkeypatch):
    _, folder, _ = first
    folder = copy_of(folder, tmp_path)
    work = job(networks | {"identity": tiny.identity(7)})
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


def test_codes_of_another_training_are_not_measured(first, tmp_path, monkeypatch):
    work, folder, results = first
    folder = copy_of(folder, tmp_path)
    other = Person("seed_6", "seed 6", seed=6)

    def kill(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save_network", kill)
        with pytest.raises(Killed):  # after saving codes, before the generator
            work(other, PersonFolder(folder))
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


def test_an_interrupted_run_with_other_settings_is_not_resumed(
    networks, tmp_path, monkeypatch
):
    work = job(networks)

    def kill_at_step_5(self, step, terms):
        if step == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "__call__", kill_at_step_5)
        with pytest.raises(Killed):
            work(SEED, PersonFolder(tmp_path))
    assert (tmp_path / ".checkpoint").exists()
    steps = []
    call = StepLog.__call__
    monkeypatch.setattr(
        StepLog, "__call__", lambda s, i, t: steps.append(i) or call(s, i, t)
    )
    job(networks, settings(seed=1))(SEED, PersonFolder(tmp_path))
    assert steps == list(range(6))


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
    summary = many(**{"source.seed": 0})
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
    for name, value in again["measures"].items():
        assert value == pytest.approx(old[name], abs=1e-5), name
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


# Several people ----------------------------------------------------------------------


@pytest.fixture
def many(networks, monkeypatch, tmp_path):
    made = tiny.networks(**networks)
    monkeypatch.setattr(experiment, "load_networks", lambda config: made)

    def run(mode="unlearn", **changes):
        return experiment.run(settings(**changes), tmp_path / "work", mode)

    return run


def test_each_person_gets_a_folder_and_one_table_lists_all(many, tmp_path, capsys):
    summary = many(**{"source.seeds": (2, 5, 2), "parallel.devices": 0})
    assert "2 of 8 devices share each step" in capsys.readouterr().out
    work = tmp_path / "work"
    assert [row["title"] for row in summary["people"]] == ["seed 2", "seed 5"]
    assert sorted(p.name for p in (work / "people").iterdir()) == ["seed_2", "seed_5"]
    assert json.loads((work / "results.json").read_text()) == summary
    header, *rows = (work / "results.csv").read_text().splitlines()
    assert header.startswith("person,title,id,id_strangers,")
    assert [row.split(",")[0] for row in rows] == ["seed_2", "seed_5"]
    assert "2 people forgotten" in (work / "report.html").read_text()


@pytest.mark.full
def test_people_in_parallel_give_the_same_results_as_in_sequence(
    many, networks, tmp_path, monkeypatch
):
    codes, used_devices = LatentFinder.__call__, []

    def recording(self, person):
        made = codes(self, person)
        used_devices.append(jax.numpy.zeros(1).device)
        if person.seed == 1:
            raise InputError("nobody")
        return made

    monkeypatch.setattr(LatentFinder, "__call__", recording)
    changes = {"source.count": 5, "steps": 3, "evaluate.others": 3}
    tables = []
    for over, devices in (("latents", 1), ("people", 3)):
        parallel = {"parallel.over": over, "parallel.devices": devices}
        with pytest.raises(UnlearningError, match=r"1 of 5 people failed.*nobody"):
            many(**changes, **parallel)
        tables.append((tmp_path / "work/results.csv").read_bytes())
        shutil.rmtree(tmp_path / "work")
    assert tables[0] == tables[1]
    assert tables[0].count(b"\n") == 6
    assert set(used_devices[5:]) == set(jax.devices()[:3])
    assert set(used_devices[:5]) == {jax.devices()[0]}


def test_one_failed_person_does_not_stop_the_rest(many, tmp_path, monkeypatch):
    codes = LatentFinder.__call__

    def fail(self, person):
        if person.seed == 1:
            raise InputError("a bad photo,\nof two lines")
        return codes(self, person)

    monkeypatch.setattr(LatentFinder, "__call__", fail)
    with pytest.raises(UnlearningError) as caught:
        many(**{"source.count": 3})
    assert "1 of 3 people failed, the rest are done: seed 1 (a bad photo, of" in str(
        caught.value
    )
    *_, last = (tmp_path / "work" / "results.csv").read_text().splitlines()
    assert last.startswith(",seed 1,")
    assert last.endswith('"a bad photo, of two lines"')
    summary = json.loads((tmp_path / "work" / "results.json").read_text())
    assert [row["title"] for row in summary["people"]] == ["seed 0", "seed 2"]
    assert "a bad photo, of two lines" in (tmp_path / "work/report.html").read_text()


def test_bad_photos_in_a_folder_are_listed_and_the_rest_done(many, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(5):
        save_noise(photos / f"{i}.png", i)
    (photos / "0.png").write_text("no photo")
    whole = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnlearningError, match="2 of 5 people failed, the rest are"):
        many(**{"source.image": str(photos)})
    text = (tmp_path / "work" / "results.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["title"] for row in rows] == [
        "1.png", "2.png", "4.png", "0.png", "3.png"
    ]  # fmt: skip
    assert [bool(row["fault"]) for row in rows] == [False] * 3 + [True] * 2
    assert "not a readable image" in rows[3]["fault"]


def test_a_doubt_about_one_photo_does_not_stop_the_rest(
    many, stranger, tmp_path, monkeypatch
):
    stranger(lenient)
    known = Calibration(0.5, missed=0.25, auc=0.9)
    monkeypatch.setattr(evaluate, "calibration_of", lambda *_: known)
    photos = tmp_path / "photos"
    photos.mkdir()
    save_grey(photos / "0.png", BRIGHT)
    save_grey(photos / "1.png", DARK)
    with pytest.raises(UnlearningError, match=r"1 of 2 people failed.*0\.png: the rec"):
        many(**{"source.image": str(photos), "steps": 1})
    summary = json.loads((tmp_path / "work" / "results.json").read_text())
    assert [row["title"] for row in summary["people"]] == ["1.png"]
    assert summary["mean"]["inversion"]["id"] == pytest.approx(1)


def test_an_unexpected_error_does_not_stop_the_rest(many, monkeypatch):
    measure = EvaluateJob.measure

    def fail(self, person, *args):
        if person.seed == 0:
            raise RuntimeError("out of\nmemory")
        return measure(self, person, *args)

    monkeypatch.setattr(EvaluateJob, "measure", fail)
    with pytest.raises(UnlearningError, match=r"seed 0 .RuntimeError: out of memory"):
        many(**{"source.count": 2})


def test_results_inside_the_photo_folder_are_rejected(many, tmp_path):
    save_noise(tmp_path / "face.png", 0)
    with pytest.raises(InputError, match="inside the photos' folder"):
        many(**{"source.image": str(tmp_path)})
    assert [path.name for path in tmp_path.iterdir()] == ["face.png"]


def test_an_unknown_mode_is_rejected(many):
    with pytest.raises(InputError, match="--mode=x: choose one of unlearn, evaluate"):
        many("x")
