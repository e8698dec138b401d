"""The record of a training, as it is stored and as version 0.1.0 stored it."""

import dataclasses
import json
from pathlib import Path

import pytest

from guide_jax.storage.network_file import read_about
from guide_jax.storage.run_folder import TrainingRecord

OLD = Path(__file__).parents[1] / "data" / "run_0_1_0" / "done" / "generator"
RECORD = TrainingRecord(
    config={"steps": 3},
    training="abc",
    person="a",
    who="def",
    generator="ghi",
    skipped=["x.png: no face found"],
    seconds=1.5,
    photos=3,
    tests=["y.png"],
)


def test_a_record_is_read_as_it_was_written():
    data = json.loads(json.dumps(dataclasses.asdict(RECORD)))
    assert TrainingRecord.from_json(data) == RECORD
    assert TrainingRecord.from_json(data | {"a later field": 1}) == RECORD


def test_a_record_of_0_1_0_is_of_one_code_and_no_tests():
    about = read_about(OLD)
    assert {"photos", "tests"}.isdisjoint(about)
    record = TrainingRecord.from_json(about)
    assert (record.photos, record.tests) == (1, [])
    assert record.person == "seed 5"


@pytest.mark.parametrize("name", ["config", "training", "who", "generator", "skipped"])
def test_an_incomplete_record_is_rejected(name):
    data = dataclasses.asdict(RECORD)
    del data[name]
    with pytest.raises(TypeError, match=name):
        TrainingRecord.from_json(data)
