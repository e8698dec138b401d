"""The console's lines and durations."""

import pytest

from guide_jax.console import Console, duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (300, "5 min"), (12000, "3 h 20 min")]
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text


def test_lines_start_with_the_worker_prefix(capsys):
    Console(2, "[cpu:1] ").say("hello")
    assert capsys.readouterr().out == "[cpu:1] hello\n"
