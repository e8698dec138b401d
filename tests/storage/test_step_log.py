"""The log of a training: resuming, and TensorBoard's event files."""

import json
import struct
import sys

import pytest

from guide_jax.storage.step_log import EVENTS, StepLog


def log_steps(path, steps):
    with StepLog(path) as log:
        for step in steps:
            log(step, {"total": step / 10})


def scalars(folder):
    """Returns the logged values by step, in the order of the files' names."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = {}
    for path in sorted(folder.iterdir()):
        data, start = path.read_bytes(), 0
        while start < len(data):  # length, its checksum, an event, its checksum
            (length,) = struct.unpack_from("<Q", data, start)
            event = event_pb2.Event.FromString(data[start + 12 : start + 12 + length])
            start += 16 + length
            for value in event.summary.value:
                found[event.step] = value.tag, value.simple_value
    return found


def test_a_resumed_log_has_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log_steps(path, range(4))
    log_steps(path, range(2, 6))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(6))
    assert [line["total"] for line in lines] == [step / 10 for step in range(6)]


def test_event_files_hold_the_terms_of_each_step(tmp_path):
    pytest.importorskip("tensorboardX")
    log_steps(tmp_path / "metrics.jsonl", range(3))
    found = scalars(tmp_path / EVENTS)
    assert found == {step: ("total", pytest.approx(step / 10)) for step in range(3)}
    (tmp_path / "metrics.jsonl").unlink()
    log_steps(tmp_path / "metrics.jsonl", range(2))  # another training
    assert sorted(scalars(tmp_path / EVENTS)) == [0, 1]


def test_nothing_is_written_without_tensorboardx(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    log_steps(tmp_path / "metrics.jsonl", range(2))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
