"""Photos: what is forgotten and tested, and doubts that stop a run."""

import numpy as np
import pytest
import tiny
from jobs import (
    BRIGHT,
    DARK,
    DIM,
    SEED,
    by_brightness,
    job,
    lenient,
    record_trainings,
    save_grey,
    save_noise,
    settings,
)
from PIL import Image

from convert import e4e as family
from convert.rules import convert
from guide_jax import inversion
from guide_jax.config import read
from guide_jax.errors import DoubtError, InputError
from guide_jax.experiment import evaluate
from guide_jax.experiment.evaluate import EvaluateJob
from guide_jax.latents import LatentFinder
from guide_jax.metrics import judges
from guide_jax.metrics.calibration import Calibration
from guide_jax.people import Person
from guide_jax.storage.run_folder import PersonFolder


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
    with pytest.raises(InputError, match="the person's photos are others"):
        work(person._replace(tests=()), PersonFolder(tmp_path / "work"))


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
        "5_test_photo.png", "6_reconstruction_before.png", "7_after.png", "others",
    ]  # fmt: skip
    # The photo that was left out can be read now.
    who = work._evaluate.who(person)
    save_noise(bad, 7)
    with pytest.raises(InputError, match="holds the result of a, which is not a with"):
        work._evaluate(person, folder)
    monkeypatch.setattr(work._evaluate, "who", lambda person: who)
    with pytest.raises(InputError, match="a: 3 photos can be read, but 2 were used"):
        work._evaluate(person, folder)


def test_e4e_inverts_several_photos_and_refines_them(networks, tmp_path):
    options = {"encoder_type": "Encoder4Editing", "start_from_latent_avg": True}
    encoder = convert(tiny.e4e_state() | {"opts": options}, family.ENCODER)
    generator = tiny.generator(32)  # L = 8, as e4e's
    photos = [save_noise(tmp_path / f"{i}.png", i) for i in range(3)]
    person = Person("a", "a", photos=tuple(photos[:2]), tests=(photos[2],))
    changes = {"steps": 1, "source.refine.steps": 3}
    more = {"encoder": encoder, "generator": generator}
    work = job(networks | more, settings(**changes))
    folder = PersonFolder(tmp_path / "work")
    results = work(person, folder)
    assert "id_others" in results["measures"]
    codes = folder.load().codes
    refined = np.concatenate([codes.w_u, codes.tests])
    assert refined.shape == (3, 8, 7)
    images = work._latents.read(photos)[0].images
    offsets = tiny.jitted(encoder, lambda m, x: m(x), images)
    first = np.asarray(offsets) + np.asarray(encoder.w_avg[...])
    assert np.abs(refined - first).max(axis=(1, 2)).min() > 1e-3
    # Three steps of refinement, from e4e's code of each photo.
    prior, limit = work._latents.prior, inversion.START
    start = np.clip(np.asarray(prior.whiten(first)), -limit, limit)
    moved = np.abs(np.asarray(prior.whiten(refined)) - start)
    assert moved.max() < 4 * settings().source.refine.learning_rate


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
