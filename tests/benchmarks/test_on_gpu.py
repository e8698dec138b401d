"""The parts for a GPU: what is run again, cut off, skipped, and counted as failed."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from benchmarks import gpu_parts, on_gpu, records
from benchmarks.gpu_parts import Part

OK = ("-c", "print('fine')")
FAILS = ("-c", "import sys; print('broken'); sys.exit(3)")
WAITS = ("-c", "import time; time.sleep(60)")


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Returns a function that runs given parts and returns code and outcomes."""
    monkeypatch.setattr(on_gpu, "device", lambda: ("gpu", "Fake"))

    def run(parts, *options):
        monkeypatch.setattr(on_gpu, "parts", lambda out: parts)
        file = tmp_path / gpu_parts.RESULTS
        before = len(records.read(file))
        code = on_gpu.main([str(tmp_path), *options])
        rows = records.read(file)[before:]
        rows = [row for row in rows if row["benchmark"] == "parts"]
        return code, {row["part"]: row["outcome"] for row in rows}

    return run


def test_parts_that_are_done_or_failed_are_not_run_again(call, tmp_path):
    parts = [
        Part("good", 60, OK, collect=lambda: [{"benchmark": "values", "x": 1}]),
        Part("bad", 60, FAILS),
        Part("lacking", 60, OK, needs=lambda: "no weights"),
    ]
    wanted = {"good": "done", "bad": "failed", "lacking": "skipped"}
    assert call(parts) == (1, wanted)
    assert call(parts) == (0, {"lacking": "skipped"})
    assert call(parts, "--again", "--only", "bad") == (1, {"bad": "failed"})
    page = (tmp_path / "results.md").read_text()
    assert "## values" in page
    assert "exit code 3: broken" in page
    assert (tmp_path / "logs/good.log").read_text() == "fine\n"


def test_a_part_that_the_call_s_end_cuts_off_is_run_again(call, monkeypatch):
    monkeypatch.setattr(on_gpu, "LEAST", 0)
    parts = [Part("long", 60, WAITS), Part("next", 60, OK)]
    monkeypatch.setattr(on_gpu, "GRACE", 5)
    code, outcomes = call(parts, "--minutes=0.02")
    assert (code, outcomes["long"]) == (0, "cut off")
    assert outcomes["next"] == "not started"
    parts[0] = Part("long", 60, OK)
    assert call(parts) == (0, {"long": "done", "next": "done"})


def test_a_part_that_exceeds_its_own_limit_has_failed(call):
    assert call([Part("long", 1, WAITS)]) == (1, {"long": "failed"})


def test_the_end_of_the_script_ends_its_part(tmp_path):
    script = textwrap.dedent(
        f"""
        import sys
        from benchmarks import on_gpu
        from benchmarks.gpu_parts import Part
        waits = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
        on_gpu.parts = lambda out: [Part("long", 60, ("-c", waits))]
        on_gpu.device = lambda: ("gpu", "Fake")
        sys.exit(on_gpu.main([{str(tmp_path)!r}]))
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=on_gpu.ROOT)
    log = tmp_path / "logs/long.log"
    until = time.monotonic() + 60
    while not (log.exists() and log.read_text()):
        assert time.monotonic() < until
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 128 + 15
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text().split()[0]), 0)


def test_a_part_without_results_has_failed(call, tmp_path):
    def collect():
        return [{"x": (tmp_path / "absent").read_text()}]

    assert call([Part("empty", 60, OK, collect=collect)]) == (1, {"empty": "failed"})


def test_without_a_gpu_only_a_dry_run_is_possible(monkeypatch, tmp_path):
    monkeypatch.setattr(on_gpu, "device", lambda: ("cpu", "cpu"))
    with pytest.raises(SystemExit, match="no GPU; --dry-run"):
        on_gpu.main([str(tmp_path)])


def test_unknown_parts_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        on_gpu.parse([str(tmp_path), "--only", "step-2048"])
    assert "no part step-2048; there are tests-float32" in capsys.readouterr().err


def test_missing_torch_and_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(gpu_parts.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(gpu_parts, "WEIGHTS", tmp_path / "weights/random_face")
    missing = {part.name: part.needs() for part in gpu_parts.parts(tmp_path)}
    missing = {name: why for name, why in missing.items() if why}
    assert "PyTorch is not installed" in missing["step-1024-against-torch"]
    assert "python -m convert --pypi" in missing["forget-1024"]
    assert missing["attack-1024"] == "forget-1024 has no result"
    compared = [f"step-{px}-against-torch" for px in (256, 512, 1024)]
    assert sorted(missing) == sorted([*compared, "forget-1024", "attack-1024"])


def test_the_tests_that_run_on_a_gpu_exist():
    root = Path(__file__).parents[2]
    assert all((root / path).exists() for path in gpu_parts.TESTS)


def test_no_part_is_silent_for_longer_than_nine_minutes(tmp_path):
    parts = gpu_parts.parts(tmp_path)
    assert max(part.limit for part in parts) <= 540
    assert len({part.name for part in parts}) == len(parts)
