"""When gradients are accumulated, and the memory estimate behind it."""

from types import SimpleNamespace

import pytest
import tiny

from guide_jax.training.accumulate import ALONE, bytes_of_pair, is_needed
from guide_jax.training.sharding import DeviceGroup

SMALL = SimpleNamespace(kind="stylegan2", resolution=8)


@pytest.mark.parametrize(
    ("choice", "memory", "needed"),
    [
        ("auto", 1e9, False),
        ("auto", 1.7e6, False),
        ("auto", 1.6e6, True),  # 1.3e6 are needed, a fifth stays free
        ("auto", 1e6, True),
        ("always", 1e9, True),
        ("never", 1e6, False),
    ],
)
def test_gradients_are_accumulated_when_all_pairs_might_not_fit(
    monkeypatch, choice, memory, needed
):
    monkeypatch.setattr(DeviceGroup, "memory", lambda self: int(memory))
    found, plan = is_needed(choice, tiny.training().sampling, SMALL, DeviceGroup())
    assert found is needed
    assert ("gradient accumulation is on" in plan) == (choice == "auto" and needed)
    assert plan.startswith("memory: ")
    assert "\n" not in plan


@pytest.mark.parametrize(
    ("choice", "memory", "cure"),
    [
        ("auto", 4.2e5, ""),
        ("auto", 4e5, "end other programs, or use a smaller generator"),
        ("always", 4e5, "end other programs, or use a smaller generator"),
        ("never", 1.6e6, "set config.gradient_accumulation to 'auto'"),
    ],
)
def test_a_plan_that_may_not_fit_says_so(monkeypatch, choice, memory, cure):
    monkeypatch.setattr(DeviceGroup, "memory", lambda self: int(memory))
    _, plan = is_needed(choice, tiny.training().sampling, SMALL, DeviceGroup())
    assert ("it may not fit" in plan) == bool(cure)
    assert plan.endswith(cure)


def test_the_memory_estimate_matches_the_measured_paper_steps():
    stylegan2 = bytes_of_pair(SimpleNamespace(kind="stylegan2", resolution=1024))
    assert stylegan2 * 5 == pytest.approx(19.7 * 2**30, rel=0.03)
    assert stylegan2 * ALONE == pytest.approx(5 * 2**30, rel=0.03)
    eg3d = bytes_of_pair(SimpleNamespace(kind="eg3d", resolution=512))
    assert eg3d * 5 == pytest.approx(11.5e9, rel=0.03)


def test_a_device_with_an_allocator_has_what_it_has_not_given_away():
    class Device:
        process_index = 0

        def memory_stats(self):
            return {"bytes_limit": 1000, "bytes_in_use": 300}

    group = DeviceGroup()
    group.local = (Device(),)
    assert group.memory() == 700
