"""People shared among processes: who takes whom, and what process 0 finds out."""

import json
import shutil
import threading
import time

import pytest
from jobs import settings

from guide_jax.config import read
from guide_jax.console import Console
from guide_jax.errors import InputError, UnlearningError
from guide_jax.experiment import shares
from guide_jax.experiment.shares import (
    MissingError,
    Share,
    outcomes_of_others,
    run_name,
)
from guide_jax.latents import LatentFinder
from guide_jax.people import sampled
from guide_jax.storage.lock import locked

PEOPLE = [sampled(seed) for seed in range(5)]
FIRST = Share(0, 3, "run", 0.3)  # 3 processes


def test_each_person_has_one_process():
    each = [Share(i, 3).of(PEOPLE) for i in range(3)]
    assert [[person.seed for person in part] for part in each] == [[0, 3], [1, 4], [2]]
    assert Share(1, 3).of(PEOPLE, 2) == each[2]
    assert [len(Share(i, 8).of(PEOPLE)) for i in range(8)] == [1] * 5 + [0] * 3
    assert Share().of(PEOPLE) == PEOPLE


def test_a_run_is_named_by_what_its_processes_have_in_common():
    def name(what="UnlearnJob", weights="w", people=PEOPLE, **changes):
        fields = {"parallel.over": "people", "parallel.processes": 3, **changes}
        hashes = {"generator": weights}
        return run_name(read(settings(**fields)), hashes, people, what)

    first = name()
    for same in ({"parallel.process": 2}, {"cache": "x"}, {"parallel.devices": 0}):
        assert name(**same) == first
    others = [name("AttackJob"), name(weights="v"), name(steps=7)]
    others += [name(people=PEOPLE[1:])]
    others += [name(**{"parallel.processes": 4}), name(**{"source.count": 7})]
    assert len({first, *others}) == 7


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """Returns a function that gives the outcomes of the other processes, by seed.

    `done` are the seeds of those who are done at first; it may grow.
    """
    monkeypatch.setattr(shares, "POLL", 0.01)

    def run(done, share=FIRST, earlier=()):
        def find_done(person):
            return {"title": person.title} if person.seed in done else None

        args = share, PEOPLE, tmp_path, find_done, Console(), dict(earlier)
        return {person.seed: found for person, found in outcomes_of_others(*args)}

    return run


def test_those_who_are_done_need_no_waiting(watch):
    found = watch({1, 2, 4}, Share(0, 3, "run", 1e9))
    assert found == {seed: {"title": f"seed {seed}"} for seed in (1, 2, 4)}


def test_people_of_a_process_that_does_not_run_are_missing_after_a_while(watch):
    found = watch({1, 2})
    assert found[1] == {"title": "seed 1"}
    assert isinstance(found[4], MissingError)
    assert str(found[4]) == "seed 4 of process 1"


def test_a_process_that_runs_is_waited_for(watch, tmp_path):
    done = {2}

    def end():
        done.update({1, 4})
        running.__exit__(None, None, None)

    running = locked(tmp_path, FIRST.other(1))
    running.__enter__()
    threading.Timer(1.0, end).start()
    found = watch(done)  # waits for 0.3 s only if process 1 does not run
    assert found.keys() == {1, 2, 4}
    assert not any(isinstance(x, Exception) for x in found.values())


def test_a_person_who_failed_elsewhere_fails_with_the_same_fault(watch, tmp_path):
    Share(1, 3, "run").save_faults(tmp_path, {"seed_4": "no face"})
    found = watch({1, 2}, Share(0, 3, "run", 1e9))
    assert str(found[4]) == "no face"
    assert not isinstance(found[4], MissingError)
    FIRST.remove_faults(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_who_failed_in_an_earlier_run_may_be_tried_again(watch, tmp_path):
    def tell():
        Share(1, 3, "run").save_faults(tmp_path, {"seed_1": "no face"})

    tell()
    earlier = FIRST.begin(tmp_path)
    assert list(earlier) == [".faults_1.json"]
    started = time.monotonic()
    assert str(watch({2, 4}, FIRST, earlier)[1]) == "no face"
    assert time.monotonic() - started >= FIRST.wait
    with locked(tmp_path, FIRST.other(1)):  # it has told that in this run
        assert not FIRST.begin(tmp_path)
    tell()
    assert str(watch({2, 4}, Share(0, 3, "run", 1e9), earlier)[1]) == "no face"
    Share(1, 3, "run").begin(tmp_path)  # it tries again
    assert watch({1, 2, 4}, Share(0, 3, "run", 1e9), earlier)[1] == {"title": "seed 1"}


# Runs ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(many, tmp_path, monkeypatch, capsys):
    """Process 1 runs while process 0 is at its first person, and somebody fails."""
    codes, during = LatentFinder.__call__, []

    def finding(self, person, on_codes):
        if person.seed == 0 and during:
            during.pop()()
        if person.seed == 1:
            raise InputError("nobody")
        return codes(self, person, on_codes)

    monkeypatch.setattr(LatentFinder, "__call__", finding)
    monkeypatch.setattr(shares, "POLL", 0.01)
    changes = {"source.count": 4, "steps": 1, "parallel.over": "people"}
    work = tmp_path / "work"
    with pytest.raises(UnlearningError, match="1 of 4 people failed, the rest are"):
        many(**changes)
    wanted = (work / "results.csv").read_bytes()
    shutil.rmtree(work)

    changes |= {"parallel.processes": 2, "parallel.wait": 1e9}

    def second():
        assert many(**changes, **{"parallel.process": 1}) == {}
        assert "process 1 has done 1 people, 1 failed" in capsys.readouterr().out
        assert not (work / "results.csv").exists()

    during.append(second)
    with pytest.raises(UnlearningError, match=r"the rest are done: seed 1 .nobody"):
        many(**changes)
    assert (work / "results.csv").read_bytes() == wanted
    assert {path.name for path in work.iterdir()} == {
        "people", "results.csv", "results.json", "report.html"
    }  # fmt: skip
    summary = json.loads((work / "results.json").read_text())
    assert [entry["title"] for entry in summary["people"]] == [
        "seed 0", "seed 2", "seed 3"
    ]  # fmt: skip


@pytest.mark.slow
def test_people_of_a_lost_process_are_named_and_done_by_the_next_run(many, tmp_path):
    changes = {"source.count": 3, "steps": 1, "parallel.over": "people"}
    three = {**changes, "parallel.processes": 3, "parallel.wait": 0.0}
    with pytest.raises(UnlearningError) as caught:
        many(**three)
    assert str(caught.value).startswith(
        "2 of 3 people are missing, because their process is not running: seed 1 of"
        " process 1, seed 2 of process 2; run the same command again, with any number"
    )
    many(**three, **{"parallel.process": 2})
    # Nobody is left for process 3 of 4.
    assert many(**changes, **{"parallel.processes": 4, "parallel.process": 3}) == {}
    summary = many(**changes)
    assert [entry["title"] for entry in summary["people"]] == [
        "seed 0", "seed 1", "seed 2"
    ]  # fmt: skip
    # The other modes find out as well who is done.
    for mode in ("evaluate", "attack"):
        few = {"attack.which": ("replay",), "attack.require": 0}
        many(mode, **changes, **few)
        assert len(many(mode, **three, **few)["people"]) == 3
