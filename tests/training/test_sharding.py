"""Several devices (of the CPU, see conftest.py) take the same steps as one."""

import functools
import re

import jax
import numpy as np
import pytest
import tiny

from configs import default
from guide_jax.errors import InputError
from guide_jax.experiment import run as experiment
from guide_jax.training.accumulate import make_frugal_step
from guide_jax.training.losses import LossWeights, PairWeights
from guide_jax.training.sharding import (
    Team,
    check,
    devices_of,
    fitting,
    make_train_step,
)
from guide_jax.training.step import Draws, fresh, make_trainer

WEIGHTS = LossWeights(
    PairWeights(0.5, 2.0, 0.3, 1.5), PairWeights(0.7, 1.0, 0.2, 0.5), 3.0
)
STEPS = 5
MAKERS = {"whole": make_train_step, "frugal": make_frugal_step}
RNG = np.random.default_rng(7)
W_U, W_TARGET = (RNG.standard_normal((1, 4, 7)).astype(np.float32) for _ in range(2))


@functools.cache
def trainer():
    return make_trainer(tiny.generator(8), tiny.judges(), WEIGHTS, 1e-3)


def started(devices, draws, kind="whole"):
    """Returns the step of so many devices, and its arguments before the first."""
    team = Team(jax.devices()[:devices])
    constants = team.replicate(trainer().constants())
    student, opt_state = team.replicate(fresh(trainer(), constants["source"]))
    rest = team.replicate((constants, W_U, W_TARGET, jax.random.key(3)))
    return MAKERS[kind](trainer(), draws, team), student, opt_state, rest


@functools.cache
def run(devices, kind="whole", counts=(8, 8)):
    """Returns the losses of some steps and what the parameters have moved by."""
    step, student, opt_state, rest = started(devices, Draws(*counts), kind)
    losses = []
    for i in range(STEPS):
        student, opt_state, terms = step(student, opt_state, *rest, np.int32(i))
        losses.append(jax.device_get(terms))
    moved = jax.tree.map(
        lambda new, old: np.asarray(new) - np.asarray(old), student, trainer().source
    )
    return losses, np.concatenate([np.ravel(x) for x in jax.tree.leaves(moved)])


@pytest.mark.parametrize(
    ("devices", "kind", "counts"),
    [
        (2, "whole", (8, 8)),
        (4, "whole", (8, 8)),
        (8, "whole", (8, 8)),
        (2, "whole", (0, 2)),
        (2, "whole", (2, 0)),
        (1, "frugal", (8, 8)),
        (4, "frugal", (8, 8)),
    ],
)
def test_any_number_of_devices_takes_the_same_steps(devices, kind, counts):
    losses, moved = run(devices, kind, counts)
    of_one, moved_of_one = run(1, "whole", counts)
    for step, (terms, wanted) in enumerate(zip(losses, of_one, strict=True)):
        assert terms.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(
                terms[name], value, rtol=1e-4, atol=1e-6, err_msg=f"{name} of {step}"
            )
    # Adam's step is as long for a gradient of rounding errors as for any other.
    difference = np.linalg.norm(moved - moved_of_one) / np.linalg.norm(moved_of_one)
    assert difference < 1e-3
    assert np.linalg.norm(moved_of_one) > 0.01


COLLECTIVE = re.compile(
    r"= .*?\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    r"|collective-broadcast|ragged-all-to-all|send|recv)(-start)?\("
)


def collectives(program, *args):
    """Returns the names of all collectives in a compiled program."""
    text = program.lower(*args).compile().as_text()
    return [found[1] for found in COLLECTIVE.finditer(text)]


@pytest.mark.parametrize("devices", [2, 8])
def test_a_step_s_only_collective_is_one_all_reduce(devices):
    step, student, opt_state, rest = started(devices, Draws(8, 8))
    found = collectives(step, student, opt_state, *rest, np.int32(0))
    assert found == ["all-reduce"]


def test_the_search_for_collectives_finds_them():
    team = Team(jax.devices()[:2])

    def gather(index, x):
        return jax.lax.psum(jax.lax.all_gather(x * index, "devices"), "devices")

    program = team.map(gather, mapped=(False,))
    assert sorted(collectives(program, np.ones(3))) == ["all-gather", "all-reduce"]


@pytest.mark.parametrize(("devices", "count"), [(4, 1), (1, 0)])
def test_the_programs_of_a_frugal_step_meet_once_too(devices, count):
    step, student, opt_state, rest = started(devices, Draws(4, 4), "frugal")
    jaxpr = str(jax.make_jaxpr(step)(student, opt_state, *rest, np.int32(0)))
    assert len(re.findall(r"\bpsum\w*\[", jaxpr)) == count
    assert not re.search(r"\b(all_gather|ppermute|all_to_all|psum_scatter)\w*\[", jaxpr)


def test_one_device_has_no_collective():
    step, student, opt_state, rest = started(1, Draws(2, 2))
    assert collectives(step, student, opt_state, *rest, np.int32(0)) == []


def test_the_person_s_own_pair_is_computed_on_one_device_only():
    """Each of two branches synthesises; one of them a picture more."""
    step, student, opt_state, rest = started(4, Draws(8, 8))
    jaxpr = str(jax.make_jaxpr(step)(student, opt_state, *rest, np.int32(0)))
    assert "cond[" in jaxpr
    sizes = {int(n) for n in re.findall(r"f32\[(\d+),8,8,3\]", jaxpr)}
    assert {2 + 2, 1 + 2 + 2} <= sizes
    assert max(sizes) == 5


@pytest.mark.parametrize(
    ("counts", "devices", "processes", "says"),
    [
        ((2, 2), 4, 1, "(4, 8, ...), or config.parallel.devices of 1 or 2;"),
        ((8, 6), 8, 1, "(8, 16, ...), or config.parallel.devices of 1 or 2;"),
        ((0, 0), 2, 1, "(2, 4, ...), or config.parallel.devices of 1;"),
        ((4, 4), 8, 2, "(8, 16, ...), or config.parallel.devices of 1 or 2;"),
        ((1, 1), 2, 2, "(2, 4, ...); config.parallel.over=people"),
    ],
)
def test_counts_that_do_not_divide_are_refused_with_those_that_would(
    counts, devices, processes, says
):
    with pytest.raises(InputError) as caught:
        check(Draws(*counts), devices, processes)
    text = str(caught.value)
    assert f"count = {counts[0]} and" in text
    assert f"over {devices} devices" in text
    assert says in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("counts", "devices"), [((2, 2), 1), ((0, 0), 1), ((8, 4), 4), ((0, 4), 2)]
)
def test_counts_that_divide_are_taken(counts, devices):
    check(Draws(*counts), devices)
    assert fitting(Draws(*counts), devices)[-1] == devices


def test_as_many_devices_share_a_step_as_can():
    config = default.get_config()
    assert experiment._devices(config, "unlearn") == jax.devices()[:2]
    config.loss.adjacency.count = config.loss.global_.count = 16
    assert experiment._devices(config, "unlearn") == jax.devices()
    config.loss.global_.count = 3
    assert experiment._devices(config, "unlearn") == jax.devices()[:1]
    assert experiment._devices(config, "evaluate") == jax.devices()[:1]
    config.parallel.devices = 4
    with pytest.raises(InputError, match="don't divide over 4 devices"):
        experiment._devices(config, "unlearn")
    config.parallel.over = "people"
    assert experiment._devices(config, "unlearn") == jax.devices()[:4]


def test_more_devices_than_there_are_are_refused(monkeypatch):
    assert devices_of(0) == jax.devices()
    assert devices_of(3) == jax.devices()[:3]
    with pytest.raises(InputError, match=r"devices is 9, but there are 8 \(cpu\)"):
        devices_of(9)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        jax, "local_devices", lambda process_index: jax.devices()[process_index:]
    )
    with pytest.raises(InputError, match="the processes have 7 and 8 devices"):
        devices_of(0)
