"""A 3D generator's run, from a person to the report."""

import json

import numpy as np
import tiny

from configs import eg3d_ffhq
from guide_jax.experiment import modes as experiment
from guide_jax.storage.network_file import load_network


def test_a_3d_person_is_forgotten_measured_and_reported(monkeypatch, tmp_path):
    loss = tiny.loss_networks()
    made = tiny.networks(
        generator=tiny.eg3d(),
        lpips=loss.lpips,
        identity=loss.identity,
        judge=tiny.identity(1),
    )
    monkeypatch.setattr(experiment, "load_networks", lambda config: made)
    config = eg3d_ffhq.get_config()
    config.steps, config.parallel.devices = 3, 1
    config.cache = str(tmp_path / "cache")
    config.optimizer.learning_rate = 0.01
    config.evaluate.align, config.evaluate.external = "crop", ()
    config.evaluate.others, config.evaluate.shown = 4, 2
    config.evaluate.fid_samples = 0
    results = experiment.run(config, tmp_path / "work")
    measures = results["people"][0]["measures"]
    assert measures["id"] < 1
    assert measures["people_kept"] == 4
    unlearned = load_network(tmp_path / "work" / "generator")
    before, after = tiny.flat(made["generator"]), tiny.flat(unlearned)
    changed = {name for name in before if np.any(before[name] != after[name])}
    assert changed
    assert all(name.startswith("synthesis.backbone.") for name in changed)
    lines = (tmp_path / "work" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert len(steps) == 3
    assert all(np.isfinite(step["total"]) for step in steps)
    assert len(list((tmp_path / "work/pictures/sides").iterdir())) == 2 * 11
    report = (tmp_path / "work/report.html").read_text()
    assert "From the sides, before and after" in report
