"""The benchmark of forgetting: which runs it starts and what it prints."""

import json
import sys

import pytest

from benchmarks import forgetting
from guide_jax.attacks.verdict import LEVELS, Outcome


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """Returns a function: arguments -> (list of (config, folder, mode), text)."""
    runs = []

    def person(folder, seed):
        own = folder / "people" / f"seed_{seed}"
        own.mkdir(parents=True, exist_ok=True)
        values = {
            "original": {"judge": [0.9, 0.7]},
            "unlearned": {"judge": [seed / 10, None]},
        }
        strangers = values | {"strangers": {"judge": [0.5, 0.7]}}
        outcomes = [
            Outcome("replay", 1, "generated", None, values),
            Outcome("search_w", 4, "photos", 25, strangers),
        ]
        attacks = {"outcomes": [outcome.as_json() for outcome in outcomes]}
        (own / "attacks.json").write_text(json.dumps(attacks))
        levels = {str(level): {"holds": level <= seed} for level in LEVELS}
        return {
            "person": own.name,
            "measures": dict.fromkeys(forgetting.COLUMNS, seed / 10),
            "verdict": {"levels": levels},
        }

    def run(config, folder, mode="unlearn"):
        runs.append((config, folder.relative_to(tmp_path), mode))
        return {"people": [person(folder, seed) for seed in config.source.seeds]}

    def call(*args):
        argv = ["forgetting.py", f"--workdir={tmp_path}", *args]
        monkeypatch.setattr(sys, "argv", argv)
        forgetting.main()
        return runs, capsys.readouterr().out

    monkeypatch.setattr(forgetting, "run", run)
    return call


def test_every_method_is_trained_and_attacked(bench):
    runs, out = bench("--seeds", "1", "3", "--others=9")
    assert [(str(folder), mode) for _, folder, mode in runs] == [
        (f"demo/{method}", mode)
        for method in ("own", "extra", "average_local_only")
        for mode in ("unlearn", "attack")
    ]
    assert [config.method for config, _, _ in runs[::2]] == ["erase", "guide", "guide"]
    for config, _, _ in runs:
        assert config.attack.require == 0
        assert config.attack.after_training == ()
        assert config.evaluate.others == 9
    assert out.count("id_kept          0.200 ± 0.141   [0.1 0.3]") == 3
    assert out.count("level 1 holds for 2 of 2 (replay and edits of the code)") == 3
    assert out.count("level 3 holds for 1 of 2") == 3
    assert "| replay | - | judge | 0.80 | 0.20 | - | 0.30 |" in out
    assert "| search_w | 25 | judge | 0.80 | 0.20 | 0.60 | 0.30 |" in out


def test_attacks_can_be_chosen(bench):
    runs, _ = bench("--methods", "own", "--seeds", "2", "3", "--attacks", "replay")
    assert {config.attack.which for config, _, _ in runs} == {("replay",)}
