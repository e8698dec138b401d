"""Records survive a killed run, and become tables."""

from benchmarks import records


def test_a_line_that_was_not_finished_is_ignored(tmp_path):
    file = tmp_path / "new" / "results.jsonl"
    assert records.read(file) == []
    records.append(file, {"benchmark": "a", "x": 1})
    records.append(None, {"benchmark": "a", "x": 2})  # no file asked for
    with file.open("a") as out:
        out.write('{"benchmark": "a", "x')
    assert records.read(file) == [{"benchmark": "a", "x": 1}]


def test_each_benchmark_gets_a_table(tmp_path):
    page = tmp_path / "results.md"
    rows = [
        {"benchmark": "step", "px": 64, "ms": 12.34567},
        {"benchmark": "parts", "note": "a|b\nc"},
        {"benchmark": "step", "px": 128, "peak": None, "done": True},
    ]
    records.write_markdown(page, "Measured", rows)
    assert page.read_text().splitlines() == [
        "# Measured",
        "",
        "## step",
        "",
        "| px | ms | peak | done |",
        "| --- | --- | --- | --- |",
        "| 64 | 12.35 |  |  |",
        "| 128 |  |  | True |",
        "",
        "## parts",
        "",
        "| note |",
        "| --- |",
        "| a/b c |",
    ]
