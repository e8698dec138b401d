"""The benchmark of the demo: what it runs again, and what it prints."""

import json
import os
import sys

import pytest

from benchmarks import demo_quality
from guide_jax.networks import BUNDLE


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """Returns a function: arguments -> (configs of the runs made, what was printed)."""
    runs = []

    def run(config, workdir):
        runs.append(config)
        results = dict.fromkeys(demo_quality.COLUMNS, 0.1 * config.source.seed)
        results |= {"seconds": {"total": 60.0}, "config": config.to_dict()}
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "results.json").write_text(json.dumps(results))
        return results

    def call(*args):
        runs.clear()
        argv = ["demo_quality.py", f"--workdir={tmp_path}", *args]
        monkeypatch.setattr(sys, "argv", argv)
        demo_quality.main()
        return list(runs), capsys.readouterr().out

    monkeypatch.setattr(demo_quality.experiment, "run", run)
    monkeypatch.setattr(demo_quality.jax.config, "update", lambda *_: None)
    return call


def test_every_method_runs_for_every_person(bench):
    runs, out = bench("--seeds", "1", "3", "--others=9")
    assert [config.source.seed for config in runs] == [1, 3] * 3
    assert [config.target.name for config in runs] == ["extra"] * 2 + ["average"] * 4
    assert [config.loss.adjacency.count for config in runs] == [2] * 4 + [0] * 2
    assert {config.evaluate.others for config in runs} == {9}
    for method in demo_quality.METHODS:
        assert f"{method}: 2 people, 9 others each" in out
    assert out.count("id_others        0.200 ± 0.141   [0.1 0.3]") == 3


def test_finished_runs_are_kept_until_settings_or_weights_change(bench, tmp_path):
    args = "--seeds", "1", "2", "--methods", "extra"
    assert len(bench(*args)[0]) == 2
    assert bench(*args)[0] == []
    assert len(bench(*args, "--others=7")[0]) == 2
    assert len(bench(*args, "--config=demo_128")[0]) == 2
    results = tmp_path / "demo" / "extra_1" / "results.json"
    older = (BUNDLE / "encoder.npz").stat().st_mtime - 1
    os.utime(results, (older, older))
    assert [config.source.seed for config in bench(*args, "--others=7")[0]] == [1]
