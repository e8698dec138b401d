"""The 3D step's benchmark runs, and refuses to time what is not the same step."""

import pytest

from benchmarks import our_step, step_3d
from benchmarks.our_step import OurStep


@pytest.mark.full
def test_both_orders_of_the_work_are_timed(capsys):
    step_3d.main(["--size=tiny", "--turns=1"])
    out = capsys.readouterr().out
    rows = {line.split()[0] for line in out.splitlines() if line}
    assert {"ours", "separate"} <= rows
    assert "separate: loss off by" in out


@pytest.mark.full
def test_another_step_is_not_timed(monkeypatch):
    def figures(self):
        return 1.0 + (self._make is our_step.VARIANTS["separate"]), 1.0

    monkeypatch.setattr(OurStep, "figures", figures)
    with pytest.raises(SystemExit, match="separate: not the same step"):
        step_3d.main(["--size=tiny", "--turns=1"])
