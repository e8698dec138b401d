"""`--mode=attack`: what it stores, skips, and how a run ends below the aim."""

import json

import numpy as np
import pytest
from jobs import SEED, job, settings

from guide_jax.errors import InputError, VerdictError
from guide_jax.experiment.attack import AttackJob
from guide_jax.experiment.evaluate import EvaluateJob
from guide_jax.storage.run_folder import PersonFolder

CHEAP = ("replay", "line", "neighbourhood", "encoder")
SHORT = {
    "attack.which": CHEAP,
    "attack.starts": 2,
    "attack.photos": 1,
    "attack.budgets": (1, 2),
    "attack.random_people": 5,
    "attack.relearn_steps": (1,),
    "attack.batch": 2,
}


@pytest.fixture(scope="module")
def forgotten(networks, tmp_path_factory):
    """Returns a folder with a result, and the texts of all of its files."""
    folder = tmp_path_factory.mktemp("forgotten")
    job(networks)(SEED, PersonFolder(folder))
    return folder


def attack_job(networks, **changes):
    return job(networks, settings(**SHORT | changes), AttackJob)


def test_the_verdict_joins_the_results_and_is_not_computed_again(
    networks, forgotten, monkeypatch, capsys
):
    before = json.loads((forgotten / "results.json").read_text())["people"][0]
    work = attack_job(networks)
    entry = work(SEED, PersonFolder(forgotten))
    results = json.loads((forgotten / "results.json").read_text())
    assert results["people"] == [entry]
    assert entry["verdict"]["level"] == entry["measures"]["level"]
    assert results["mean"]["measures"]["level"] == entry["verdict"]["level"]
    assert {k: entry["measures"][k] for k in before["measures"]} == before["measures"]
    assert results["config"]["attack"]["which"] == list(CHEAP)
    stored = json.loads((forgotten / "attacks.json").read_text())
    assert {x["attack"] for x in stored["outcomes"]} == set(CHEAP)
    assert stored["verdict"] == entry["verdict"]
    assert "level" in capsys.readouterr().out

    monkeypatch.setattr(work, "_attacker", None)  # would fail
    assert work(SEED, PersonFolder(forgotten)) == entry


def test_measuring_again_keeps_the_verdict(networks, forgotten):
    verdict = attack_job(networks)(SEED, PersonFolder(forgotten))["verdict"]
    again = job(networks, settings(**{"evaluate.others": 5}), EvaluateJob)
    entry = again(SEED, PersonFolder(forgotten))
    assert entry["measures"]["people_kept"] == 5
    assert entry["verdict"] == verdict
    # But the attacks' judges may have changed with the measures' settings.
    work = attack_job(networks, **{"evaluate.others": 5})
    assert work(SEED, PersonFolder(forgotten))["verdict"]["levels"].keys() == set(
        "12345"
    )


def test_every_attack_runs_on_any_generator(networks, forgotten):
    all_of_them = settings().attack.which
    work = attack_job(networks, **{"attack.which": all_of_them})
    work(SEED, PersonFolder(forgotten))
    stored = json.loads((forgotten / "attacks.json").read_text())
    assert {x["attack"] for x in stored["outcomes"]} == set(all_of_them) - {
        "edits",
        "other_codes",
    }
    for outcome in stored["outcomes"]:
        for by_judge in outcome["similarities"].values():
            for values in by_judge.values():
                assert all(x is None or np.isfinite(x) for x in values)
    budgets = [x["budget"] for x in stored["outcomes"] if x["attack"] == "search_w"]
    assert budgets == [0, 1, 2]


def test_training_ends_with_the_cheap_attacks_if_the_config_says_so(networks, tmp_path):
    config = settings(**SHORT, **{"attack.after_training": ("replay",)})
    work = job(networks, config)
    entry = work(SEED, PersonFolder(tmp_path))
    assert entry["verdict"]["levels"]["1"]["holds"] is not None
    assert entry["verdict"]["levels"]["2"]["holds"] is None
    # A fuller verdict is not replaced when the training is found to be done.
    attack_job(networks)(SEED, PersonFolder(tmp_path))
    entry = work(SEED, PersonFolder(tmp_path))
    assert entry["verdict"]["levels"]["2"]["holds"] is not None


def test_a_folder_without_a_result_or_with_a_foreign_one_is_one_line(
    networks, forgotten, tmp_path
):
    work = attack_job(networks)
    with pytest.raises(InputError, match="no complete result is stored there"):
        work(SEED, PersonFolder(tmp_path))
    other = SEED._replace(name="seed_6", title="seed 6", seed=6)
    with pytest.raises(InputError, match="holds the result of seed 5, which is not"):
        work(other, PersonFolder(forgotten))


def test_without_an_encoder_its_level_is_not_tested(networks, tmp_path):
    rest = {role: x for role, x in networks.items() if role != "encoder"}
    job(rest)(SEED, PersonFolder(tmp_path))
    all_of_them = settings().attack.which
    entry = attack_job(rest, **{"attack.which": all_of_them})(
        SEED, PersonFolder(tmp_path)
    )
    assert entry["verdict"]["levels"]["3"]["holds"] is None
    stored = json.loads((tmp_path / "attacks.json").read_text())
    assert (
        "encoder: config.networks.encoder names no encoder that fits"
        in stored["left_out"]
    )
    assert "search_w" in {x["attack"] for x in stored["outcomes"]}


def test_a_run_below_the_aim_ends_with_an_error_and_keeps_its_results(many, tmp_path):
    people = {"source.seeds": (3, 4), "evaluate.external": ()}
    many(**people)
    done = many("attack", **people, **SHORT, **{"attack.require": 0})
    levels = [x["verdict"]["level"] for x in done["people"]]
    with pytest.raises(VerdictError, match=r"verdicts are below level 5"):
        many("attack", **people, **SHORT, **{"attack.require": 5})
    stored = json.loads((tmp_path / "work/results.json").read_text())
    assert [x["verdict"]["level"] for x in stored["people"]] == levels
    page = (tmp_path / "work/report.html").read_text()
    assert page.count("Verdict: level") == 2
