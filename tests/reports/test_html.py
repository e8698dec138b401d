"""The HTML report: its contents, and that it loads nothing from elsewhere."""

import html.parser
import json
import re

import numpy as np
import pytest

from guide_jax.attacks.scoring import Threshold
from guide_jax.attacks.verdict import Outcome, give_verdict
from guide_jax.reports import pictures
from guide_jax.reports.html import render_report
from guide_jax.reports.summary import Done, Failed, summarise


class Reader(html.parser.HTMLParser):
    """Collects tags with their attributes and all text; fails on unbalanced ones."""

    VOID = ("meta", "img")

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
def report(tmp_path):
    """Returns a page of two people and its parse; a name needs escaping."""
    done = []
    for name in ("a", "<b>&"):
        folder = tmp_path / f"{len(done)}"
        folder.mkdir()
        image = np.full((200, 200, 3), 0.5)
        pictures.save_images(folder / "pictures", {"before": image, "after": -image})
        terms = ("total", "local", "adjacency", "global")
        lines = [dict.fromkeys(terms, 1 / (i + 1)) for i in range(1000)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        np.savez(folder / "embeddings.npz")
        entry = {"person": name, "title": f"title of {name}", "notes": ["a & b"]}
        entry["calibration"] = {"ir": "not measured", "<d>": "1 % & more"}
        done.append(Done(entry | {"measures": {"id": 0.125}}, folder))
    failed = [Failed("<c>", "no face & no hope")]
    summary = summarise(done, failed, {"steps": 1000})
    text = render_report(summary, done, "run <1>")
    return text, Reader(text)


def test_the_report_is_self_contained(report):
    text, reader = report
    assert "//" not in text.replace("data:image/jpeg;base64,", "").split("<body>")[0]
    for tag, attributes in reader.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "data", "action", "background"):
            value = attributes.get(name, "data:")
            assert value.startswith(("data:", "#")), (tag, value)
    assert "url(" not in text
    assert "@import" not in text


def test_the_report_contains_people_faults_curves_and_settings(report):
    _, reader = report
    assert "run <1>: 2 people forgotten, 1 failed" in reader.text
    assert "title of <b>&" in reader.text
    assert "<c>: no face & no hope" in reader.text
    assert '"steps": 1000' in reader.text
    assert "0.125 ± 0.000" in reader.text
    for judge, rates in (("ir", "not measured"), ("<d>", "1 % & more")):
        assert judge + rates in reader.text  # in two cells of a row
    images = [attrs["alt"] for tag, attrs in reader.tags if tag == "img"]
    assert images == ["before", "after"] * 2
    assert "a & b" in reader.text
    curves = [
        attrs["d"] for tag, attrs in reader.tags if tag == "path" and "d" in attrs
    ]
    curves = [d for d in curves if 100 < d.count("L") <= 200]
    assert len(curves) == 8
    targets = {attrs.get("id") for _, attrs in reader.tags}
    links = [attrs["href"][1:] for tag, attrs in reader.tags if tag == "a"]
    assert len(links) == 2
    assert set(links) <= targets


def test_a_measure_that_does_not_apply_is_a_dash_and_no_face_is_named(tmp_path):
    np.savez(tmp_path / "embeddings.npz")
    entries = [
        {"person": "a", "title": "a", "measures": {"id": None, "id_others": 0.5}},
        {"person": "b", "title": "b", "measures": {"id": 0.25}},
    ]
    more = {"notes": [], "calibration": {}}
    done = [Done(entry | more, tmp_path) for entry in entries]
    text = render_report(summarise(done, [], {}), done, "x")
    cells = re.findall(r'<td class="n">([^<]*)</td>', text)
    assert cells[-4:] == ["no face", "0.500", "0.250", "-"]


def test_a_person_without_steps_has_no_curve(tmp_path):
    np.savez(tmp_path / "embeddings.npz")
    (tmp_path / "metrics.jsonl").write_text("")
    entry = {"person": "a", "title": "a", "measures": {"id": None}, "notes": []}
    entry["calibration"] = {}
    done = [Done(entry, tmp_path)]
    reader = Reader(render_report(summarise(done, [], {}), done, "x"))
    assert "svg" not in [tag for tag, _ in reader.tags]
    assert "1 person forgotten" in reader.text


def attacked(folder, level):
    """Returns an entry with a verdict, whose attacks are stored in the folder."""
    folder.mkdir()
    np.savez(folder / "embeddings.npz")
    images = np.zeros((2, 32, 32, 3))
    pictures.save_images(folder / "pictures", {"before": images[0], "after": images[1]})
    pictures.save_pairs(folder / "pictures/others", images, images)
    outcomes = [Outcome("replay", 1, "generated", None, by_group(0.1))]
    outcomes += [
        Outcome("search_w", 4, "photos", steps, by_group(steps / 200))
        for steps in (0, 25, 100)
    ]
    verdict = give_verdict(
        outcomes,
        {
            x: {"judge": Threshold(0.6, 0.05, 0.01, 0.3)}
            for x in ("generated", "photos")
        },
        0.05,
    )
    assert verdict["level"] == level
    attacks = {"outcomes": [x.as_json() for x in outcomes], "verdict": verdict}
    attacks["crowd"] = {"judge": [0.1, 0.2, None, 0.4, 0.3]}
    (folder / "attacks.json").write_text(json.dumps(attacks))
    more = {"notes": [], "calibration": {}, "worst_others": [0.25, None]}
    entry = {"person": "a", "title": "a", "measures": {"level": level}}
    return Done(entry | more | {"verdict": verdict}, folder)


def by_group(value):
    groups = {"original": [0.9], "unlearned": [value], "strangers": [0.3, 0.4]}
    return {name: {"judge": values} for name, values in groups.items()}


def test_the_report_opens_with_the_verdict(tmp_path):
    done = [attacked(tmp_path / "a", 1)]
    text = render_report(summarise(done, [], {}), done, "x")
    reader = Reader(text)
    headline = "Verdict: level 1 of 5; withstands replay and edits of the code; its"
    assert reader.text.index(headline) < reader.text.index("highest level of attacks")
    assert "1 replay and edits of the code: holds" in reader.text
    assert "4 optimisation in W: fails" in reader.text
    assert "5 optimisation in W+: not tested" in reader.text
    for label in ("optimisation in W", "never-seen people", "own code 0.10", "steps"):
        assert f">{label}<" in text or label in reader.text
    images = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert [x["alt"] for x in images] == [
        "before", "after", "before", "after: 0.25", "before", "after: no face",
    ]  # fmt: skip
    assert int(images[0]["width"]) > 2 * int(images[2]["width"])
    assert '<meta name="viewport"' in text


def test_a_person_who_was_not_attacked_has_no_verdict(report):
    _, reader = report
    assert reader.text.count("No verdict yet: run --mode=attack") == 2
