"""The tables that a run prints, of one person and of all."""

import numpy as np

from guide_jax.metrics.measures import INVERSION, MEASURES
from guide_jax.reports.terminal import mean_and_deviation, person_table, summary_table


def test_table_has_a_line_for_each_measure_with_value_and_meaning():
    values = dict(zip(MEASURES, np.arange(len(MEASURES)) / 7 - 0.5, strict=True))
    counts = {"level": 3, "people_kept": 40, "fid_samples": 5000, "no_face": 2}
    lines = person_table({"measures": values | counts, "notes": []}).splitlines()
    assert len(lines) == len(MEASURES)
    for line, measure in zip(lines, MEASURES.values(), strict=True):
        words = line.split()
        assert words[0] == measure.name
        counted = measure.name in counts
        wanted = str(counts[measure.name]) if counted else None
        assert words[1] == (wanted or f"{values[measure.name]:.3f}")
        assert line.endswith(measure.meaning)
    starts = {line.index(MEASURES[line.split()[0]].meaning) for line in lines}
    assert len(starts) == 1


def test_deviation_is_that_of_a_sample():
    assert mean_and_deviation([1, 2, 4]) == "2.333 ± 1.528"


def test_table_names_missing_faces_and_the_judge():
    judged = {"id": None, "id_kept": 0.5, "no_face": 3}
    entry = {"measures": {"id": 0.25}, "judges": {"dlib": judged}}
    lines = person_table(entry).splitlines()
    assert lines[0].split()[:2] == ["id", "0.250"]
    assert lines[1].split()[:3] == ["dlib.id", "no", "face"]
    assert lines[1].endswith(MEASURES["id"].meaning + ", by dlib")
    assert lines[2].endswith(MEASURES["id_kept"].meaning + ", by dlib")
    assert lines[3].split()[:2] == ["dlib.no_face", "3"]


def test_table_shows_the_quality_of_an_inversion():
    inversion = {"id": 0.5, "lpips": 0.125, "from_mean": 0.75}
    entry = {"measures": {}, "inversion": inversion}
    lines = person_table(entry).splitlines()
    assert lines[0].split()[:2] == ["inversion.id", "0.500"]
    assert lines[1].endswith(INVERSION["lpips"].meaning)
    assert lines[2].split()[:2] == ["inversion.from_mean", "0.750"]
    assert lines[2].endswith(INVERSION["from_mean"].meaning)


def test_table_shows_each_judge_s_similarity_of_an_inversion():
    judges = {"facenet": {"id": 0.25}, "dlib": {"id": None}}
    entry = {"measures": {}, "inversion": {"id": 0.5, "judges": judges}}
    lines = person_table(entry).splitlines()
    assert lines[1].split()[:2] == ["inversion.facenet.id", "0.250"]
    assert lines[1].endswith(INVERSION["id"].meaning + ", by facenet")
    assert lines[2].split()[:3] == ["inversion.dlib.id", "no", "face"]


def test_summary_table_has_means_and_deviations_except_for_counts():
    mean = {"measures": {"id": 0.5, "no_face": 1.5}}
    summary = {"mean": mean, "deviation": {"measures": {"id": 0.25}}}
    summary["id_targets"] = 0.125
    first, second, third = summary_table(summary).splitlines()
    assert third.split()[:2] == ["id_targets", "0.125"]
    assert first.split()[:4] == ["id", "0.500", "±", "0.250"]
    assert second.split()[:2] == ["no_face", "1.5"]
