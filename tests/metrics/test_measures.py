"""The registry of measures: their order and format."""

import pytest

from guide_jax.metrics.measures import MEASURES, in_order


def test_measures_follow_the_registry_order():
    assert in_order(["fid_pre", "no_face", "id"]) == ["id", "fid_pre", "no_face"]


def test_an_unregistered_measure_is_rejected():
    with pytest.raises(KeyError, match="kindness"):
        in_order(["id", "kindness"])


def test_values_are_formatted_by_their_measure():
    assert MEASURES["id"].text(None) == "no face"
    assert MEASURES["id"].text(0.12345) == "0.123"
    assert MEASURES["fid_pre"].text(None) == "-"
    assert MEASURES["people_kept"].text(40) == "40"
