"""The step compiles for TPUs that are not there; the table says what was planned."""

import importlib.util
import os
import signal

import pytest

from benchmarks import on_tpu, records

GIB = on_tpu.GIB
CASE = {
    "program": "step",
    "tiny": True,
    "size": 32,
    "dtype": "float32",
    "precision": "default",
    "level": "O1",  # compiles faster
    "chip": "v5e",
    "devices": 4,
}
LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, TPUs' compiler, is not installed (pip install -e '.[tpu]')",
)


@LIBTPU
@pytest.mark.full
def test_four_devices_share_a_step_with_one_all_reduce():
    row = on_tpu.compile_apart(CASE)
    assert "error" not in row
    assert row["collectives"] == {"all-reduce": 1}
    # The weights of LPIPS's VGG16 alone are 59 MB.
    assert 59e6 < row["hbm"] < 16 * GIB
    assert row["flop"] > 0


def test_the_table_divides_by_the_chip_s_peaks():
    fits = {"hbm": 4 * GIB, "collectives": {"all-reduce": 1}, "compile_s": 2}
    fits |= {"flop": 197e12, "bytes": 8.19e9, "compile_cpu_s": 1}
    fails = {"hbm": 40 * GIB, "error": "out of memory"}
    fails |= {"compile_s": 9, "compile_cpu_s": 9}
    head, first, second = on_tpu.table([CASE | fits, CASE | fails])
    first, second = (dict(zip(head, row, strict=True)) for row in (first, second))
    assert (first["compiles"], first["HBM GiB"], first["of"]) == ("yes", "4.00", "16")
    assert (first["s by FLOP"], first["s by bytes"]) == ("1", "0.01")
    assert first["collectives"] == "1 all-reduce"
    assert (second["compiles"], second["HBM GiB"]) == ("no", "40.00")
    assert second["s by FLOP"] == "-"


def test_cases_in_the_file_are_not_compiled_again(monkeypatch, tmp_path, capsys):
    out = tmp_path / "tpu.jsonl"
    compiled = []

    def compile_case(case):
        compiled.append((case["dtype"], case["devices"]))
        return {"error": "no", "compile_s": 1, "compile_cpu_s": 1}

    monkeypatch.setattr(on_tpu, "compile_apart", compile_case)
    monkeypatch.setattr(on_tpu.metadata, "version", lambda name: "1")
    options = ["--tiny", "--sizes=32", "--chips=v5e", f"--out={out}"]
    on_tpu.main([*options, "--dtypes=float32"])
    assert compiled == [("float32", 1), ("float32", 4)]
    on_tpu.main(options)
    assert compiled[2:] == [("bfloat16", 1), ("bfloat16", 4)]
    on_tpu.main([*options, "--show"])
    assert len(compiled) == len(records.read(out)) == 4
    assert capsys.readouterr().out.count("32 px") == 2 + 4 + 4


@pytest.mark.parametrize(
    "message",
    [
        "Ran out of memory in memory space hbm. Used 25.50G of 15.75G hbm.",
        "the total memory required for HLO temporaries (25.50G) exceeds available HBM",
    ],
)
def test_memory_that_a_failed_compilation_wanted_is_read(message):
    found = on_tpu.TOO_LARGE.search(message)
    assert (found[1], found[2]) == ("25.50", "G")


def crash(case):
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_crash_of_the_compiler_is_a_result(monkeypatch):
    monkeypatch.setattr(on_tpu, "compile_case", crash)
    assert on_tpu.compile_apart(CASE)["error"] == "the compiler crashed"
