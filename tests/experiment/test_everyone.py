"""Runs for several people: what they do, list and survive."""

import csv
import io
import json
import shutil

import jax
import pytest
from jobs import BRIGHT, DARK, lenient, save_grey, save_noise

from guide_jax.errors import InputError, UnlearningError
from guide_jax.experiment import evaluate
from guide_jax.experiment.evaluate import EvaluateJob
from guide_jax.latents import LatentFinder
from guide_jax.metrics.calibration import Calibration


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

    def recording(self, person, on_codes):
        made = codes(self, person, on_codes)
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

    def fail(self, person, on_codes):
        if person.seed == 1:
            raise InputError("a bad photo,\nof two lines")
        return codes(self, person, on_codes)

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


def test_bad_photos_in_a_folder_are_listed_and_the_rest_done(many, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(5):
        save_noise(photos / f"{i}.png", i)
    (photos / "0.png").write_text("no photo")
    whole = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(whole[: len(whole) // 2])
    (photos / "clip.mov").write_text("no photo")
    with pytest.raises(UnlearningError, match="2 of 5 people failed, the rest are"):
        many(**{"source.image": str(photos)})
    text = (tmp_path / "work" / "results.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["title"] for row in rows] == [
        "1.png", "2.png", "4.png", "0.png", "3.png"
    ]  # fmt: skip
    assert [bool(row["fault"]) for row in rows] == [False] * 3 + [True] * 2
    assert "not a readable image" in rows[3]["fault"]
    (left_out,) = json.loads((tmp_path / "work/results.json").read_text())["left_out"]
    assert left_out.startswith(f"{photos / 'clip.mov'}: not a readable image")
    assert f"left out: {left_out}" in capsys.readouterr().out
    assert "clip.mov" in (tmp_path / "work/report.html").read_text()


def test_what_the_only_person_s_folder_leaves_out_is_reported(many, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    save_noise(photos / "0.png", 0)
    (photos / "clip.mov").write_text("no photo")
    summary = many(**{"source.image": str(photos)})
    (left_out,) = summary["left_out"]
    assert "clip.mov: not a readable image" in left_out
    assert json.loads((tmp_path / "work/results.json").read_text()) == summary
    assert "clip.mov" in (tmp_path / "work/report.html").read_text()


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
