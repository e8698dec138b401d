"""Several devices (of the CPU; see conftest.py) take the same steps as one."""

import functools
import re

import jax
import numpy as np
import pytest
import tiny

from configs import default
from guide_jax.config import read
from guide_jax.config_types import LossWeights, PairWeights, Sampling
from guide_jax.errors import InputError
from guide_jax.experiment import modes as experiment
from guide_jax.training.accumulate import make_accumulating_step
from guide_jax.training.context import initial_state, make_context
from guide_jax.training.sharding import (
    DeviceGroup,
    Shards,
    check_divisible,
    devices_of,
    make_sharded_step,
    valid_counts,
)
from guide_jax.training.step import make_step

WEIGHTS = LossWeights(
    PairWeights(0.5, 2.0, 0.3, 1.5), PairWeights(0.7, 1.0, 0.2, 0.5), 3.0
)
STEPS = 5
FULL = pytest.mark.full  # cases that the others nearly cover
MAKERS = {
    "one": lambda context, sampling, group: make_step(context, sampling),
    "whole": make_sharded_step,
    "accumulating": make_accumulating_step,
}
RNG = np.random.default_rng(7)
CODES = RNG.standard_normal((2, 3, 4, 7)).astype(np.float32)  # w_u, w_target


def sampling(num_adjacent, num_global):
    return Sampling(num_adjacent, num_global, alpha_max=15.0, psi=1.0)


@functools.cache
def context():
    return make_context(tiny.generator(8), tiny.loss_networks(), WEIGHTS, 1e-3)


def prepare(devices, counts, kind="whole", codes=1):
    """Returns a step on `devices` devices, and its arguments for the first call."""
    group = DeviceGroup(jax.devices()[:devices])
    constants = group.replicate(context().constants())
    state = initial_state(context(), constants["source"])
    student, opt_state = group.replicate(state)
    rest = group.replicate((constants, *CODES[:, :codes], jax.random.key(3)))
    step = MAKERS[kind](context(), sampling(*counts), group)
    return step, student, opt_state, rest


@functools.cache
def run(devices, kind="whole", counts=(8, 8), codes=1):
    """Returns the losses of STEPS steps, and the parameters' total displacement."""
    step, student, opt_state, rest = prepare(devices, counts, kind, codes)
    losses = []
    for i in range(STEPS):
        student, opt_state, terms = step(student, opt_state, *rest, np.int32(i))
        losses.append(jax.device_get(terms))
    displacement = jax.tree.map(
        lambda new, old: np.asarray(new) - np.asarray(old), student, context().source
    )
    return losses, np.concatenate([np.ravel(x) for x in jax.tree.leaves(displacement)])


@pytest.mark.parametrize(
    ("devices", "kind", "counts", "codes"),
    [
        (2, "whole", (8, 8), 1),
        pytest.param(4, "whole", (8, 8), 1, marks=FULL),
        pytest.param(8, "whole", (8, 8), 1, marks=FULL),
        pytest.param(2, "whole", (0, 2), 1, marks=FULL),
        pytest.param(2, "whole", (2, 0), 1, marks=FULL),
        (4, "whole", (8, 8), 3),
        pytest.param(1, "accumulating", (8, 8), 1, marks=FULL),
        pytest.param(4, "accumulating", (8, 8), 1, marks=FULL),
        (4, "accumulating", (8, 8), 3),
    ],
)
def test_any_number_of_devices_takes_the_same_steps(devices, kind, counts, codes):
    losses, displacement = run(devices, kind, counts, codes)
    wanted_losses, wanted_displacement = run(1, "one", counts, codes)
    for step, (terms, wanted) in enumerate(zip(losses, wanted_losses, strict=True)):
        assert terms.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(
                terms[name], value, rtol=1e-4, atol=1e-6, err_msg=f"{name} of {step}"
            )
    # Adam's steps are as long for a gradient of rounding errors as for any other.
    difference = np.linalg.norm(displacement - wanted_displacement) / np.linalg.norm(
        wanted_displacement
    )
    assert difference < 1e-3
    assert np.linalg.norm(wanted_displacement) > 0.01


COLLECTIVE = re.compile(
    r"= .*?\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    r"|collective-broadcast|ragged-all-to-all|send|recv)(-start)?\("
)


def collectives(program, *args):
    """Returns the names of all collectives in a compiled program."""
    text = program.lower(*args).compile().as_text()
    return [found[1] for found in COLLECTIVE.finditer(text)]


@pytest.mark.parametrize("devices", [2, pytest.param(8, marks=FULL)])
def test_the_only_collective_of_a_step_is_one_all_reduce(devices):
    step, student, opt_state, rest = prepare(devices, (8, 8))
    found = collectives(step, student, opt_state, *rest, np.int32(0))
    assert found == ["all-reduce"]


def test_the_search_for_collectives_works():
    group = DeviceGroup(jax.devices()[:2])

    def gather(index, x):
        return jax.lax.psum(
            jax.lax.all_gather(x * index.astype(x.dtype), "devices"), "devices"
        )

    program = group.map(gather, mapped=(False,))
    assert sorted(collectives(program, np.ones(3))) == ["all-gather", "all-reduce"]


@pytest.mark.parametrize(("devices", "count"), [(4, 1), (1, 0)])
def test_an_accumulating_step_has_one_all_reduce_too(devices, count):
    step, student, opt_state, rest = prepare(devices, (4, 4), "accumulating")
    jaxpr = str(jax.make_jaxpr(step)(student, opt_state, *rest, np.int32(0)))
    assert len(re.findall(r"\bpsum\w*\[", jaxpr)) == count
    assert not re.search(r"\b(all_gather|ppermute|all_to_all|psum_scatter)\w*\[", jaxpr)


def test_a_single_device_needs_no_collective():
    step, student, opt_state, rest = prepare(1, (2, 2), "one")
    assert collectives(step, student, opt_state, *rest, np.int32(0)) == []


def test_the_local_pair_is_computed_on_one_device_only():
    """Both branches synthesise images; one of them makes one image more."""
    step, student, opt_state, rest = prepare(4, (8, 8))
    jaxpr = str(jax.make_jaxpr(step)(student, opt_state, *rest, np.int32(0)))
    assert "cond[" in jaxpr
    sizes = {int(n) for n in re.findall(r"f32\[(\d+),8,8,3\]", jaxpr)}
    assert {2 + 2, 1 + 2 + 2} <= sizes
    assert max(sizes) == 5


@pytest.mark.parametrize(
    ("counts", "devices", "processes", "says"),
    [
        ((2, 2), 4, 1, "use multiples of 4, or config.parallel.devices = 1 or 2, or"),
        ((8, 6), 8, 1, "use multiples of 8, or config.parallel.devices = 1 or 2, or"),
        ((0, 0), 2, 1, "use multiples of 2, or config.parallel.devices = 1, or"),
        ((4, 4), 8, 2, "use multiples of 8, or config.parallel.devices = 1 or 2, or"),
        ((1, 1), 2, 2, "use multiples of 2, or config.parallel.over=people"),
    ],
)
def test_indivisible_counts_are_rejected_with_alternatives(
    counts, devices, processes, says
):
    with pytest.raises(InputError) as caught:
        check_divisible(sampling(*counts), devices, processes)
    text = str(caught.value)
    assert f"count = {counts[0]} and" in text
    assert f"over {devices} devices" in text
    assert says in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("counts", "devices"), [((2, 2), 1), ((0, 0), 1), ((8, 4), 4), ((0, 4), 2)]
)
def test_divisible_counts_are_accepted(counts, devices):
    check_divisible(sampling(*counts), devices)
    assert valid_counts(sampling(*counts), devices)[-1] == devices


def test_a_step_uses_as_many_devices_as_possible():
    config = default.get_config()
    assert experiment.choose_devices(read(config), True) == jax.devices()[:2]
    config.loss.adjacency.count = config.loss.global_.count = 16
    assert experiment.choose_devices(read(config), True) == jax.devices()
    config.loss.global_.count = 3
    assert experiment.choose_devices(read(config), True) == jax.devices()[:1]
    assert experiment.choose_devices(read(config), False) == jax.devices()[:1]
    config.parallel.devices = 4
    with pytest.raises(InputError, match="do not divide over 4 devices"):
        experiment.choose_devices(read(config), True)
    config.parallel.over = "people"
    assert experiment.choose_devices(read(config), True) == jax.devices()[:4]


def test_a_person_is_erased_on_one_device():
    config = default.get_config()
    config.method, config.steps = "erase", 0
    assert experiment.choose_devices(read(config), True) == jax.devices()[:1]
    config.parallel.over = "people"
    assert experiment.choose_devices(read(config), True) == jax.devices()
    config.parallel.over, config.parallel.devices = "latents", 2
    with pytest.raises(InputError, match=r"config\.parallel\.over=people gives each"):
        experiment.choose_devices(read(config), True)


def test_rows_that_devices_cannot_share_are_refused():
    for adjacent, random in ((2, 4), (4, 2)):
        with pytest.raises(
            ValueError, match=f"{adjacent} adjacent and {random} random"
        ):
            Shards(1, adjacent, random, devices=4)


def test_unavailable_devices_are_rejected(monkeypatch):
    assert devices_of(0) == jax.devices()
    assert devices_of(3) == jax.devices()[:3]
    with pytest.raises(InputError, match=r"is 9, but each process has 8 \(cpu\)"):
        devices_of(9)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        jax, "local_devices", lambda process_index: jax.devices()[process_index:]
    )
    with pytest.raises(InputError, match="the processes have 7 and 8 devices"):
        devices_of(0)
