"""The HTML report: what is in it, and that it needs nothing from anywhere else."""

import html.parser
import json

import numpy as np
import pytest

from guide_jax.reports import report
from guide_jax.reports.html import page
from guide_jax.reports.summary import Done, Failed, summarise


class Reader(html.parser.HTMLParser):
    """Collects tags with their attributes and all text; fails on unbalanced ones."""

    VOID = ("meta", "img", "polyline", "rect")

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], "", []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def made(tmp_path):
    """Returns the read page of two people, the second one of a nasty name."""
    done = []
    for name in ("a", "<b>&"):
        folder = tmp_path / f"{len(done)}"
        folder.mkdir()
        image = np.full((200, 200, 3), 0.5)
        report.pictures(folder / "pictures", {"before": image, "after": -image})
        terms = ("total", "local", "adjacency", "global")
        lines = [dict.fromkeys(terms, 1 / (i + 1)) for i in range(1000)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        np.savez(folder / "embeddings.npz")
        results = {"person": name, "title": f"title of {name}", "id": 0.125}
        done.append(Done(results, folder))
    failed = [Failed("<c>", "no face & no hope")]
    summary = summarise(done, failed, {"steps": 1000})
    text = page(summary, done, "run <1>")
    return text, Reader(text)


def test_it_needs_no_network(made):
    text, reader = made
    assert "//" not in text.replace("data:image/jpeg;base64,", "").split("<body>")[0]
    for tag, attributes in reader.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "data", "action", "background"):
            value = attributes.get(name, "data:")
            assert value.startswith(("data:", "#")), (tag, value)
    assert "url(" not in text
    assert "@import" not in text


def test_people_faults_curves_and_settings_are_in_it(made):
    _, reader = made
    assert "run <1>: 2 people forgotten, 1 failed" in reader.text
    assert "title of <b>&" in reader.text
    assert "<c>: no face & no hope" in reader.text
    assert '"steps": 1000' in reader.text
    assert "0.125 ± 0.000" in reader.text
    images = [attrs["alt"] for tag, attrs in reader.tags if tag == "img"]
    assert images == ["before", "after"] * 2
    lines = [attrs["points"] for tag, attrs in reader.tags if tag == "polyline"]
    assert len(lines) == 8
    assert all(100 < len(points.split()) <= 200 for points in lines)
    targets = {attrs.get("id") for _, attrs in reader.tags}
    links = [attrs["href"][1:] for tag, attrs in reader.tags if tag == "a"]
    assert len(links) == 2
    assert set(links) <= targets


def test_a_person_without_steps_has_no_curve(tmp_path):
    np.savez(tmp_path / "embeddings.npz")
    (tmp_path / "metrics.jsonl").write_text("")
    done = [Done({"person": "a", "title": "a", "id": None}, tmp_path)]
    reader = Reader(page(summarise(done, [], {}), done, "x"))
    assert "svg" not in [tag for tag, _ in reader.tags]
    assert "1 person forgotten" in reader.text
