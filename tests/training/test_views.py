"""Steps of a 3D generator: a new view each, which student and source share."""

import functools
import math

import jax
import numpy as np
import pytest
import tiny

from guide_jax.config_types import LossWeights, PairWeights
from guide_jax.models.eg3d import cameras
from guide_jax.training.accumulate import make_accumulating_step
from guide_jax.training.context import initial_state, make_context
from guide_jax.training.sharding import DeviceGroup, make_sharded_step
from guide_jax.training.step import draw_latents, make_step

PAIR = PairWeights(0.5, 2.0, 0.3)
SAMPLING = tiny.training().sampling  # N_a = N_g = 2
W_U, W_TARGET = np.random.default_rng(7).standard_normal((2, 1, 6, 7), np.float32)


@functools.cache
def context(make=tiny.eg3d):
    weights = LossWeights(PAIR, PAIR, 3.0)
    return make_context(make(), tiny.loss_networks(), weights, 1e-3)


@functools.cache
def drawn():
    """Returns the views of 100 steps: cameras [100, 5, 25] and keys [100, 5]."""

    @jax.jit
    def views(constants, keys):
        def draw(key):
            args = context(), constants, SAMPLING, W_U, W_TARGET, key
            return draw_latents(*args).view

        return jax.vmap(draw)(keys)

    keys = jax.random.split(jax.random.key(0), 100)
    return views(context().constants(), keys)


@functools.cache
def run(kind, devices=1):
    """Returns the terms of two steps, and the parameters' displacement."""
    group = DeviceGroup(jax.devices()[:devices])
    constants = group.replicate(context().constants())
    state = group.replicate(initial_state(context(), constants["source"]))
    rest = group.replicate((constants, W_U, W_TARGET, jax.random.key(3)))
    step = {
        "one": lambda context, sampling, group: make_step(context, sampling),
        "sharded": make_sharded_step,
        "accumulating": make_accumulating_step,
    }[kind](context(), SAMPLING, group)
    found = []
    for i in range(2):
        *state, terms = step(*state, *rest, np.int32(i))
        found.append(jax.device_get(terms))
    moved = jax.tree.map(
        lambda new, old: np.asarray(new) - np.asarray(old), state[0], context().source
    )
    return found, np.concatenate([np.ravel(x) for x in jax.tree.leaves(moved)])


def test_a_step_has_one_view_with_uniform_yaw():
    camera = np.asarray(drawn()["camera"])
    assert camera.shape == (100, 5, 25)
    np.testing.assert_array_equal(camera, camera[:, :1] + np.zeros((1, 5, 1)))
    x, y, z = camera[:, 0, [3, 7, 11]].T  # where the cameras are
    np.testing.assert_allclose(y, 2.7 * 2 / math.pi * 0.2, rtol=1e-5)
    yaw = np.degrees(np.arctan2(x, z))
    assert -15 <= yaw.min() < -13
    assert 13 < yaw.max() <= 15
    counts, _ = np.histogram(yaw, 3, (-15, 15))
    assert counts.min() > 20
    aimed = cameras.look_at(np.radians(yaw), -0.2)  # at the origin
    np.testing.assert_allclose(camera[:, 0], aimed, atol=1e-5)


def test_each_pair_and_step_has_its_own_samples_along_rays():
    keys = np.asarray(jax.random.key_data(drawn()["key"])).reshape(500, -1)
    assert len(np.unique(keys, axis=0)) == 500


def test_a_2d_generator_draws_no_view():
    flat = context(tiny.mobile)
    assert flat.draw_view(jax.random.key(0), 5) == {}


def test_student_and_source_share_the_view():
    """Before the first step both are equal, so random people look the same."""
    terms, moved = run("one")
    np.testing.assert_allclose(terms[0]["lpips"][3:], 0, atol=1e-12)
    assert np.all(terms[0]["lpips"][:3] > 0)
    assert np.all(terms[1]["lpips"][3:] > 0)
    assert np.linalg.norm(moved) > 0.01


def test_the_loss_compares_planes():
    synthesis = tiny.eg3d().synthesis
    _, activations = tiny.jitted(
        synthesis, lambda m, w: m(w), np.concatenate([W_U, W_TARGET])
    )
    student, source = np.asarray(activations["b16.img"])
    assert student.shape == (16, 16, 12)
    wanted = np.mean((student - source) ** 2)
    np.testing.assert_allclose(run("one")[0][0]["mse"][0], wanted, rtol=1e-4)


@pytest.mark.parametrize(("kind", "devices"), [("accumulating", 1), ("sharded", 2)])
def test_shared_and_accumulated_steps_have_the_same_views(kind, devices):
    terms, moved = run(kind, devices)
    wanted_terms, wanted = run("one")
    for step, (ours, theirs) in enumerate(zip(terms, wanted_terms, strict=True)):
        for name, value in theirs.items():
            np.testing.assert_allclose(
                ours[name], value, rtol=1e-3, atol=1e-5, err_msg=f"{name} of {step}"
            )
    assert np.linalg.norm(moved - wanted) < 0.01 * np.linalg.norm(wanted)
