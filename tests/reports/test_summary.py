import csv
import io
import json

import numpy as np
import pytest

from guide_jax.reports.summary import Done, Failed, summarise, to_csv, versions


@pytest.fixture
def done(tmp_path):
    """Returns three people, of whom the second one has no face after."""
    targets = np.eye(3)
    targets[2] = [0.6, 0.8, 0.0]
    made = []
    for i, target in enumerate(targets):
        folder = tmp_path / str(i)
        folder.mkdir()
        np.savez(folder / "embeddings.npz", target=target)
        results = {
            "person": f"p{i}",
            "title": f"person {i}",
            "id": None if i == 1 else 0.5 * i,
            "lpips_kept": 0.25,
            "people_kept": 4,
            "inversion": {"id": 0.5, "lpips": 0.125},
            "seconds": {"training": i},
            "config": {},
        }
        made.append(Done(results, folder))
    return made


def test_means_are_over_those_where_a_measure_was_found(done):
    summary = summarise(done, [], {"seeds": (1, 2)})
    assert summary["mean"]["id"] == 0.5
    assert summary["deviation"]["id"] == pytest.approx(np.sqrt(0.5))
    assert summary["mean"]["inversion_lpips"] == 0.125
    assert summary["deviation"]["lpips_kept"] == 0
    assert summary["id_targets"] == pytest.approx((0 + 0.6 + 0.8) / 3)
    assert "seconds" not in summary["mean"]
    assert json.loads(json.dumps(summary)) == summary


def test_one_person_has_no_deviation_and_nobody_no_mean(done):
    one = summarise(done[:1], [], {})
    assert (one["deviation"], one["id_targets"]) == ({}, None)
    assert summarise([], [], {})["mean"] == {}


def test_csv_has_a_row_for_each_person_and_each_fault(done):
    text = to_csv(summarise(done, [Failed("x.jpg", 'not "an" image, at all')], {}))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["person"] for row in rows] == ["p0", "p1", "p2", ""]
    assert [row["id"] for row in rows] == ["0.000000", "", "1.000000", ""]
    assert rows[0]["people_kept"] == "4"
    assert rows[0]["inversion_id"] == "0.500000"
    assert [row["fault"] for row in rows] == ["", "", "", 'not "an" image, at all']
    assert rows[3]["title"] == "x.jpg"
    assert "\r" not in text


def test_csv_of_failures_alone_still_says_who():
    rows = list(
        csv.DictReader(io.StringIO(to_csv(summarise([], [Failed("x", "y")], {}))))
    )
    assert rows == [{"person": "", "title": "x", "fault": "y"}]


def test_versions_name_what_a_run_depends_on():
    found = versions()
    assert {"python", "device", "jax", "flax", "numpy"} <= found.keys()
    assert all(found.values())
