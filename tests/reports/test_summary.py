"""The summary of a run's people, and its CSV table."""

import csv
import io
import json

import numpy as np
import pytest

from guide_jax.reports.columns import Column, cells
from guide_jax.reports.summary import Done, Failed, summarise, to_csv, versions


@pytest.fixture
def done(tmp_path):
    """Returns three people; the second has no face after unlearning."""
    targets = np.eye(3)
    targets[2] = [0.6, 0.8, 0.0]
    made = []
    for i, target in enumerate(targets):
        folder = tmp_path / str(i)
        folder.mkdir()
        np.savez(folder / "embeddings.npz", target=target, floor=np.float32(0))
        entry = {
            "person": f"p{i}",
            "title": f"person {i}",
            "measures": {
                "id": None if i == 1 else 0.5 * i,
                "lpips_kept": 0.25,
                "people_kept": 4,
            },
            "judges": {"dlib": {"id": 0.75}},
            "inversion": {
                "id": 0.5,
                "lpips": 0.125,
                "from_mean": 0.75,
                "judges": {"dlib": {"id": 0.25 * i}, "facenet": {"id": None}},
            },
            "seconds": {"training": i},
        }
        made.append(Done(entry, folder))
    return made


def test_means_skip_people_without_the_measure(done):
    summary = summarise(done, [], {"seeds": (1, 2)})
    mean, deviation = summary["mean"], summary["deviation"]
    assert mean["measures"]["id"] == 0.5
    assert deviation["measures"]["id"] == pytest.approx(np.sqrt(0.5))
    assert mean["judges"] == {"dlib": {"id": 0.75}}
    assert mean["inversion"] == {
        "id": 0.5,
        "lpips": 0.125,
        "from_mean": 0.75,
        "judges": {"dlib": {"id": 0.25}},  # "facenet" never found a face
    }
    assert deviation["inversion"]["judges"] == {"dlib": {"id": 0.25}}
    assert deviation["measures"]["lpips_kept"] == 0
    assert summary["id_targets"] == pytest.approx((0 + 0.6 + 0.8) / 3)
    assert "seconds" not in summary["mean"]
    assert json.loads(json.dumps(summary)) == summary


def test_means_have_the_form_of_an_entry(done):
    summary = summarise(done, [], {})
    again = cells(summary["mean"])
    people = [cells(entry) for entry in summary["people"]]
    known = {column for row in people for column, x in row.items() if x is not None}
    assert set(again) == known
    assert again[Column("id", "dlib", inversion=True)] == 0.25


def test_similarities_of_targets_are_rescaled_by_the_judge_s_floor(done):
    for _, folder in done:
        with np.load(folder / "embeddings.npz") as archive:
            target = archive["target"]
        np.savez(folder / "embeddings.npz", target=target, floor=np.float32(0.2))
    cosine = (0 + 0.6 + 0.8) / 3
    wanted = (cosine - 0.2) / (1 - 0.2)
    assert summarise(done, [], {})["id_targets"] == pytest.approx(wanted)


def test_people_whose_target_has_no_face_are_left_out_of_the_similarity(done):
    np.savez(done[0].folder / "embeddings.npz", floor=np.float32(0))
    assert summarise(done, [], {})["id_targets"] == pytest.approx(0.8)
    np.savez(done[1].folder / "embeddings.npz", floor=np.float32(0))
    assert summarise(done, [], {})["id_targets"] is None


def test_one_person_has_no_deviation_and_no_people_have_no_mean(done):
    one = summarise(done[:1], [], {})
    nothing = {"measures": {}, "judges": {}, "inversion": {}}
    assert (one["deviation"], one["id_targets"]) == (nothing, None)
    assert summarise([], [], {})["mean"] == nothing


def test_csv_has_a_row_for_each_person_and_each_fault(done):
    text = to_csv(summarise(done, [Failed("x.jpg", 'not "an" image, at all')], {}))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["person"] for row in rows] == ["p0", "p1", "p2", ""]
    assert [row["id"] for row in rows] == ["0.000000", "", "1.000000", ""]
    assert rows[0]["people_kept"] == "4"
    assert rows[0]["inversion.id"] == "0.500000"
    assert rows[2]["inversion.dlib.id"] == "0.500000"
    assert rows[0]["inversion.facenet.id"] == ""
    assert rows[0]["inversion.from_mean"] == "0.750000"
    assert rows[1]["dlib.id"] == "0.750000"
    assert [row["fault"] for row in rows] == ["", "", "", 'not "an" image, at all']
    assert rows[3]["title"] == "x.jpg"
    assert "\r" not in text


def test_csv_of_failures_alone_names_the_people():
    rows = list(
        csv.DictReader(io.StringIO(to_csv(summarise([], [Failed("x", "y")], {}))))
    )
    assert rows == [{"person": "", "title": "x", "fault": "y"}]


def test_versions_name_what_a_run_depends_on():
    found = versions()
    assert {"python", "device", "jax", "flax", "numpy"} <= found.keys()
    assert all(found.values())
