import numpy as np
import pytest
from PIL import Image

from guide_jax.metrics.evaluator import MEASURES
from guide_jax.reports import report

COLOURS = [(200, 20, 20), (20, 200, 20), (20, 20, 200), (200, 200, 20), (20, 200, 200),
           (200, 20, 200), (90, 90, 90), (160, 160, 160)]  # fmt: skip


def flat(colour, size=24):
    return np.broadcast_to(np.array(colour) / 127.5 - 1, (size, size, 3))


def test_before_after_holds_every_image_at_its_place(tmp_path):
    images = [flat(colour) for colour in COLOURS]
    path = tmp_path / "x.png"
    report.before_after(
        path,
        {"before": images[0], "after": images[1]},
        (np.stack(images[2:5]), np.stack(images[5:])),
        "caption",
    )
    with Image.open(path) as opened:
        assert (opened.format, opened.mode) == ("PNG", "RGB")
        sheet = np.asarray(opened)
    # Three columns of 192 + 8; three rows of 22 + 192 + 8 under a caption of 22 + 8.
    assert sheet.shape == (30 + 3 * 222, 8 + 3 * 200, 3)
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    for (row, column), colour in zip(places, COLOURS, strict=True):
        top, left = 30 + 222 * row + 22, 8 + 200 * column
        tile = sheet[top : top + 192, left : left + 192]
        assert (tile == colour).all(), (row, column)
        for y, x in ((top - 1, left), (top, left - 1), (top + 192, left)):
            assert tuple(sheet[y, x]) != colour
    assert (sheet[52:, 408:600][:192] == 255).all()  # the first row has two images
    assert (sheet[:30] != 255).any()  # the caption


def test_before_after_is_as_wide_as_the_person_needs(tmp_path):
    people = {name: flat(COLOURS[0]) for name in "abcd"}
    one = np.stack([flat(COLOURS[1])])
    report.before_after(tmp_path / "x.png", people, (one, one), "")
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (8 + 4 * 200, 696)


def test_table_has_a_line_for_each_measure_with_value_and_meaning():
    values = dict(zip(MEASURES, np.arange(len(MEASURES)) / 7 - 0.5, strict=True))
    counts = {"people_kept": 40, "fid_samples": 5000, "no_face": 2}
    lines = report.table(values | counts | {"more": 1}).splitlines()
    assert len(lines) == len(MEASURES)
    for line, (name, text) in zip(lines, MEASURES.items(), strict=True):
        words = line.split()
        assert words[0] == name
        wanted = str(counts[name]) if name in counts else f"{values[name]:.3f}"
        assert words[1] == wanted
        assert line.endswith(text)
    assert len({line.index(MEASURES[line.split()[0]]) for line in lines}) == 1


def test_mean_and_deviation_is_the_sample_s():
    assert report.mean_and_deviation([1, 2, 4]) == "2.333 ± 1.528"


def test_table_says_where_no_face_was_found_and_whose_judgement_it_is():
    values = {"id_dlib": None, "id_kept_dlib": 0.5, "no_face_dlib": 3}
    lines = report.table(values).splitlines()
    assert lines[2].split()[:2] == ["no_face_dlib", "3"]
    assert lines[0].split()[:3] == ["id_dlib", "no", "face"]
    assert lines[0].endswith(MEASURES["id"] + ", by dlib")
    assert lines[1].endswith(MEASURES["id_kept"] + ", by dlib")


def test_summary_table_has_means_and_deviations_but_for_counts():
    summary = {"mean": {"id": 0.5, "no_face": 1.5}, "deviation": {"id": 0.25}}
    summary["id_targets"] = 0.125
    first, second, third = report.summary_table(summary).splitlines()
    assert third.split()[:2] == ["id_targets", "0.125"]
    assert first.split()[:4] == ["id", "0.500", "±", "0.250"]
    assert second.split()[:2] == ["no_face", "1.5"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (300, "5 min"), (12000, "3 h 20 min")]
)
def test_durations_are_read_easily(seconds, text):
    assert report.duration(seconds) == text


def test_pictures_are_numbered_and_replace_those_of_before(tmp_path):
    (tmp_path / "mine.png").write_text("not theirs to remove")
    report.pictures(tmp_path, {"before": flat(COLOURS[0]), "after": flat(COLOURS[1])})
    report.pictures(tmp_path, {"reconstruction before": flat(COLOURS[2])})
    path, mine = sorted(tmp_path.iterdir())
    assert path.name == "1_reconstruction_before.png"
    assert mine.name == "mine.png"
    with Image.open(path) as image:
        assert image.size == (24, 24)
        assert image.getpixel((3, 3)) == COLOURS[2]
