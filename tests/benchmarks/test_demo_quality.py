"""The demo benchmark: which runs it starts and what it prints."""

import sys

import pytest

from benchmarks import demo_quality


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """Returns a function: arguments -> (list of (config, folder) run, printed text)."""
    runs = []

    def run(config, workdir):
        runs.append((config, workdir.relative_to(tmp_path)))
        return {
            "people": [
                {"measures": dict.fromkeys(demo_quality.COLUMNS, seed / 10)}
                for seed in config.source.seeds
            ]
        }

    def call(*args):
        argv = ["demo_quality.py", f"--workdir={tmp_path}", *args]
        monkeypatch.setattr(sys, "argv", argv)
        demo_quality.main()
        return runs, capsys.readouterr().out

    monkeypatch.setattr(demo_quality, "run", run)
    return call


def test_every_method_runs_for_all_people(bench):
    runs, out = bench("--seeds", "1", "3", "--others=9")
    configs = [config for config, _ in runs]
    assert {tuple(config.source.seeds) for config in configs} == {(1, 3)}
    assert [config.method for config in configs] == ["erase", *["guide"] * 3]
    targets = [config.target.name for config in configs[1:]]
    assert targets == ["extra", "average", "average"]
    assert [config.loss.adjacency.count for config in configs[1:]] == [2, 2, 0]
    assert {config.evaluate.others for config in configs} == {9}
    assert [str(folder) for _, folder in runs] == [
        f"demo/{method}" for method in demo_quality.METHODS
    ]
    for method in demo_quality.METHODS:
        assert f"{method}: 2 people, 9 others each" in out
    assert out.count("id_kept          0.200 ± 0.141   [0.1 0.3]") == len(
        demo_quality.METHODS
    )


def test_one_person_and_one_method_on_the_larger_demo(bench):
    runs, out = bench("--config=demo_128", "--seeds", "4", "--methods", "extra")
    ((config, folder),) = runs
    assert (config.name, str(folder)) == ("demo_128", "demo_128/extra")
    assert "id               0.400   [0.4]" in out
