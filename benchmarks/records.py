"""Results of benchmarks: a JSON-lines file, and a Markdown page made from it.

A record is a flat JSON object with the key "benchmark", which names its table. Every
record is on disk as soon as it is there, so a run that is killed keeps what it has.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guide_jax.storage import atomic

Record = dict[str, Any]


def append(path: Path | None, record: Record) -> None:
    """Adds a record to a JSON-lines file; does nothing if `path` is None."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        print(json.dumps(record), file=file)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Record]:
    """Returns a file's records; a line that a killed program left is ignored."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def write_markdown(path: Path, title: str, records: Iterable[Record]) -> None:
    """Writes a page with a table for each benchmark.

    Args:
        path: the page, which is replaced.
        title: the page's heading.
        records: the records; a table's columns are the keys of its records.
    """
    tables: dict[str, list[Record]] = {}
    for record in records:
        tables.setdefault(record["benchmark"], []).append(record)
    lines = [f"# {title}"]
    for name, rows in tables.items():
        keys = list(dict.fromkeys(key for row in rows for key in row))
        keys.remove("benchmark")
        lines += ["", f"## {name}", "", _line(keys), _line(["---"] * len(keys))]
        lines += [_line([_cell(row.get(key)) for key in keys]) for row in rows]
    with atomic.writing(path) as part:
        part.write_text("\n".join(lines) + "\n")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "/").replace("\n", " ")
