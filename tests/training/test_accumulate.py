"""When gradients are accumulated, and the memory estimate behind it."""

import pytest
import tiny

from guide_jax.training.accumulate import bytes_of_pair, is_needed
from guide_jax.training.sharding import DeviceGroup


@pytest.mark.parametrize(
    ("choice", "memory", "needed"),
    [
        ("auto", 1e9, False),
        ("auto", 1e6, True),
        ("always", 1e9, True),
        ("never", 1e6, False),
    ],
)
def test_gradients_are_accumulated_when_all_pairs_might_not_fit(
    monkeypatch, choice, memory, needed
):
    monkeypatch.setattr(DeviceGroup, "memory", lambda self: int(memory))
    found, reason = is_needed(choice, tiny.training().sampling, 8, DeviceGroup())
    assert found is needed
    assert ("gradient accumulation is on" in reason) == (choice == "auto" and needed)


def test_the_memory_estimate_matches_the_measured_paper_step():
    assert bytes_of_pair(1024) * 5 == pytest.approx(19.7 * 2**30, rel=0.03)
    assert 1e9 < DeviceGroup().memory() < 1e14
