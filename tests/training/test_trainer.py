"""The training loop: what it changes, samples, reports and rejects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from guide_jax.config_types import LossWeights, PairWeights
from guide_jax.errors import UnlearningError
from guide_jax.training import step as training_step
from guide_jax.training import trainer as training
from guide_jax.training.accumulate import make_accumulating_step
from guide_jax.training.checkpoint import TrainStateStore
from guide_jax.training.context import initial_state, make_context
from guide_jax.training.sharding import DeviceGroup
from guide_jax.training.step import draw_latents
from guide_jax.training.trainer import Trainer

RNG = np.random.default_rng(7)
W_U, W_TARGET = (
    RNG.standard_normal((1, 4, 7)).astype(np.float32) for _ in range(2)
)  # [1, L, D] at 8 pixels


MAKE_STEP = training.make_step  # the tests replace it with a shared one
PAPER = tiny.training()


@pytest.fixture(scope="module")
def generator():
    return tiny.generator(8)


@pytest.fixture(scope="module", autouse=True)
def _compile_once():
    """Shares one compiled step, because runs differ only in the step's arguments."""
    make, cache = training.make_step, {}

    def cached_step(context, sampling):
        assert context.weights == PAPER.weights
        return cache.setdefault((context.graph, sampling), make(context, sampling))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_step", cached_step)
        yield


def run(
    generator,
    *,
    w_u=W_U,
    w_target=W_TARGET,
    on_step=None,
    state=None,
    steps=3,
    learning_rate=1e-2,
    **settings,
):
    """Returns the unlearned generator, and all calls to `on_step`."""
    calls = []
    settings = tiny.training(steps=steps, learning_rate=learning_rate, **settings)
    trainer = Trainer(generator, tiny.loss_networks(), settings)
    unlearned = trainer(
        w_u,
        w_target,
        on_step=on_step or (lambda step, terms: calls.append((step, terms))),
        state=state,
    )
    return unlearned, calls


def parameters(generator):
    paths = nnx.to_flat_state(nnx.state(generator.synthesis, nnx.Param))
    return {"synthesis." + ".".join(map(str, path)) for path, _ in paths}


def test_only_parameters_of_the_synthesis_network_change(generator):
    before = tiny.flat(generator)
    after = tiny.flat(run(generator)[0])
    assert after.keys() == before.keys()
    changed = {name for name in before if np.any(before[name] != after[name])}
    assert changed == parameters(generator)
    assert not any("noise_const" in name for name in changed)
    assert all(np.isfinite(leaf).all() for leaf in after.values())


def test_the_original_generator_is_not_modified(generator):
    before = tiny.flat(generator)
    unlearned, _ = run(generator)
    after = tiny.flat(generator)
    for name, leaf in before.items():
        np.testing.assert_array_equal(after[name], leaf, err_msg=name)
    for name in ("bias", "noise_const"):  # a parameter and a buffer
        leaf_of_copy = getattr(unlearned.synthesis.b4.conv1, name)
        leaf_of_copy[...] = jnp.full_like(leaf_of_copy[...], 9.0)
        np.testing.assert_array_equal(
            getattr(generator.synthesis.b4.conv1, name)[...],
            before[f"synthesis.b4.conv1.{name}"],
        )


def test_the_seed_determines_the_result(generator):
    first, again, other = (tiny.flat(run(generator, seed=s)[0]) for s in (0, 0, 1))
    for name, leaf in first.items():
        np.testing.assert_array_equal(again[name], leaf, err_msg=name)
    differ = {name for name, leaf in first.items() if np.any(other[name] != leaf)}
    assert differ == parameters(generator)


def test_zero_steps_leave_the_generator_unchanged(generator):
    unlearned, calls = run(generator, steps=0)
    before, after = tiny.flat(generator), tiny.flat(unlearned)
    assert calls == []
    for name, leaf in before.items():
        np.testing.assert_array_equal(after[name], leaf, err_msg=name)


def test_on_step_gets_the_terms_as_finite_floats(generator):
    _, calls = run(generator)
    assert [step for step, _ in calls] == [0, 1, 2]
    names = {"mse", "lpips", "id", "local", "adjacency", "global", "total"}
    for _, terms in calls:
        assert terms.keys() == names
        assert {type(value) for value in terms.values()} == {float}
        assert np.isfinite(list(terms.values())).all()
        parts = terms["local"] + terms["adjacency"] + terms["global"]
        assert terms["total"] == pytest.approx(parts, rel=1e-5)
    assert calls[0][1]["global"] == pytest.approx(0, abs=1e-5)  # not trained yet
    assert calls[2][1]["global"] > 1e-4
    assert calls[2][1]["local"] < calls[0][1]["local"]


@pytest.mark.parametrize("counts", [(0, 2), (2, 0)])
def test_adjacent_or_global_latents_can_be_left_out(counts):
    w_u, w_target = W_U[:, :2], W_TARGET[:, :2]  # 4 pixels compile faster
    unlearned, calls = run(
        tiny.generator(4),
        steps=2,
        w_u=w_u,
        w_target=w_target,
        num_adjacent=counts[0],
        num_global=counts[1],
    )
    assert all(np.isfinite(leaf).all() for leaf in tiny.flat(unlearned).values())
    for _, terms in calls:
        assert (terms["adjacency"] == 0) == (counts[0] == 0)
    assert (calls[1][1]["global"] == 0) == (counts[1] == 0)


def test_a_nan_loss_ends_the_run_with_a_one_line_error(generator):
    with pytest.raises(UnlearningError) as caught:
        run(generator, w_target=np.full_like(W_TARGET, np.nan))
    text = str(caught.value)
    assert text.startswith("the loss is nan at step 0 (adjacency nan, global ")
    assert text.endswith("there is no checkpoint before that")
    assert "\n" not in text


def test_a_gradient_that_is_not_finite_ends_the_run(generator, monkeypatch, tmp_path):
    def make_overflowing_step(context, sampling):
        def step(student, opt_state, constants, w_u, w_target, key, i):
            terms = dict.fromkeys(("total", "local", "adjacency", "global"), 1.0)
            size = jnp.float32(np.inf if i == 4 else 2)
            return student, opt_state, terms | {"gradient": size}

        return step

    monkeypatch.setattr(training, "make_step", make_overflowing_step)
    state, calls = TrainStateStore(tmp_path / "state", "a training", 2), []
    with pytest.raises(UnlearningError) as caught:
        run(generator, steps=8, state=state, on_step=lambda i, terms: calls.append(i))
    assert str(caught.value) == (
        "the norm of the gradient is inf at step 4 (adjacency 1, global 1,"
        " gradient inf, local 1, total 1), so no result was saved; try a lower"
        " config.optimizer.learning_rate; the last good checkpoint, of 4 steps, is"
        f" {tmp_path / 'state'}"
    )
    assert calls == [0, 1, 2, 3]


@pytest.mark.parametrize("accumulates", ["always", "never"])
def test_a_step_whose_gradient_overflows_says_so(generator, accumulates, monkeypatch):
    """The loss is finite, and its gradient isn't, at a root of zero."""
    loss = training_step.weighted_sum

    def rooted(values, weights):
        return loss(values, weights) + jnp.sqrt(0 * values.mse[0])

    monkeypatch.setattr(training_step, "weighted_sum", rooted)
    monkeypatch.setattr(training, "make_step", MAKE_STEP)
    with pytest.raises(UnlearningError, match="norm of the gradient is nan at step 0"):
        run(generator, steps=1, gradient_accumulation=accumulates)


def test_a_generator_broken_by_the_last_step_is_an_error(generator, monkeypatch):
    def make_breaking_step(context, sampling):
        def step(student, opt_state, constants, w_u, w_target, key, i):
            terms = dict.fromkeys(("total", "local", "adjacency", "global"), 1.0)
            broken = jax.tree.map(lambda x: x * 1e30, student)
            return broken, opt_state, terms | {"id": np.ones(3)}

        return step

    monkeypatch.setattr(training, "make_step", make_breaking_step)
    with pytest.raises(UnlearningError, match="images are not finite"):
        run(generator, steps=1)


@pytest.fixture
def keys(monkeypatch):
    """Replaces the step with a counter; returns the keys and indices that it gets."""
    given = []

    def fake(context, sampling):
        def step(student, opt_state, constants, w_u, w_target, key, i):
            given.append((key, int(i)))
            total = np.nan if len(given) == 5 else float(len(given))
            names = ("total", "local", "adjacency", "global")
            terms = dict.fromkeys(names, jnp.float32(total))
            return student, opt_state, terms | {"id": jnp.full(3, total)}

        return step

    monkeypatch.setattr(training, "make_step", fake)
    return given


def test_each_step_is_reported_once_with_its_own_terms(generator, keys):
    _, calls = run(generator, steps=4)
    assert [(step, terms["total"]) for step, terms in calls] == [
        (0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)
    ]  # fmt: skip


def test_steps_before_a_nan_are_reported(generator, keys):
    calls = []
    with pytest.raises(UnlearningError, match="at step 4"):
        run(generator, steps=8, on_step=lambda step, terms: calls.append(step))
    assert calls == [0, 1, 2, 3]


def test_each_step_gets_the_seed_key_and_its_index(generator, keys):
    run(generator, steps=3, seed=5)
    assert [i for _, i in keys] == [0, 1, 2]
    assert all(key == jax.random.key(5) for key, _ in keys)


def test_only_the_step_runs_at_the_configured_precision(generator, monkeypatch):
    precisions = []

    def fake(context, sampling):
        def step(student, opt_state, constants, w_u, w_target, key, i):
            precisions.append(jax.config.jax_default_matmul_precision)
            names = ("total", "local", "adjacency", "global")
            terms = dict.fromkeys(names, jnp.float32(1))
            return student, opt_state, terms | {"id": jnp.ones(3)}

        return step

    monkeypatch.setattr(training, "make_step", fake)
    with jax.default_matmul_precision("float32"):
        run(
            generator,
            steps=2,
            precision="tensorfloat32",
            on_step=lambda step, terms: precisions.append(
                jax.config.jax_default_matmul_precision
            ),
        )
    assert precisions == ["tensorfloat32"] * 2 + ["float32"] * 2


# Several codes ------------------------------------------------------------------------

MANY, MANY_TARGETS = (
    np.random.default_rng(i).standard_normal((3, 4, 7)).astype(np.float32)
    for i in range(2)
)


def rows_of(step, per_step, count=3, seed=0):
    """Returns which codes a step takes, and checks that their targets are theirs."""
    order = training._Order(MANY[:count], MANY_TARGETS[:count], np.zeros(2, np.uint32))
    settings = tiny.training(codes_per_step=per_step, seed=seed)
    w_u, w_target = training._codes_of(order, step, settings)
    rows = [int(np.argmax((w == MANY).all((1, 2)))) for w in w_u]
    np.testing.assert_array_equal(w_u, MANY[rows])
    np.testing.assert_array_equal(w_target, MANY_TARGETS[rows])
    return rows


@pytest.mark.parametrize("per_step", [0, 3, 4])
def test_every_step_takes_all_codes_if_asked_for_so_many(per_step):
    for step in range(4):
        assert rows_of(step, per_step) == [0, 1, 2]


def test_codes_take_turns():
    ones = [rows_of(step, 1) for step in range(7)]
    assert sorted(row for (row,) in ones[:3]) == [0, 1, 2]
    assert ones[3:6] == ones[:3]
    assert ones[6] == ones[0]
    pairs = [rows_of(step, 2) for step in range(3)]
    assert [row for pair in pairs for row in pair] == [row for (row,) in ones[:6]]
    assert all(len(set(pair)) == 2 for pair in pairs)
    orders = {
        tuple(rows_of(step, 1, seed=seed)[0] for step in range(3)) for seed in range(20)
    }
    assert len(orders) > 1


def test_a_single_code_is_taken_by_every_step():
    assert [rows_of(step, 1, count=1) for step in range(3)] == [[0]] * 3


class Killed(BaseException):
    """Stands for a kill signal: nothing catches it."""


def test_a_resumed_training_takes_the_codes_that_it_would_have_taken(
    generator, tmp_path, monkeypatch
):
    taken, make = [], training.make_step

    def make_recording_step(context, sampling):
        step = make(context, sampling)

        def recording(student, opt_state, constants, w_u, *rest):
            taken.append(np.asarray(w_u))
            return step(student, opt_state, constants, w_u, *rest)

        return recording

    monkeypatch.setattr(training, "make_step", make_recording_step)
    codes = {"w_u": MANY, "w_target": MANY_TARGETS, "codes_per_step": 1, "steps": 5}
    whole, calls = run(generator, **codes)
    assert [step for step, _ in calls] == [0, 1, 2, 3, 4]
    wanted = [MANY[rows_of(step, 1)] for step in range(5)]
    np.testing.assert_array_equal(taken, wanted)

    def kill(step, terms):
        if step == 2:
            raise Killed

    taken.clear()
    state = TrainStateStore(tmp_path / "state", "a training", 2)
    with pytest.raises(Killed):
        run(generator, **codes, state=state, on_step=kill)
    taken.clear()
    resumed, calls = run(generator, **codes, state=state)
    assert [step for step, _ in calls] == [2, 3, 4]
    np.testing.assert_array_equal(taken, wanted[2:])
    before, after, again = map(tiny.flat, (generator, whole, resumed))
    for name, leaf in after.items():
        np.testing.assert_array_equal(again[name], leaf, err_msg=name)
    changed = {name for name, leaf in after.items() if np.any(leaf != before[name])}
    assert changed == parameters(generator)


def test_a_following_process_broadcasts_as_many_codes_as_process_0(
    generator, keys, monkeypatch
):
    settings = tiny.training(steps=3, codes_per_step=1)
    follower = Trainer(generator, tiny.loss_networks(), settings)
    key = np.asarray(jax.random.key_data(jax.random.key(0)))
    orders = [
        training._Order(MANY, MANY_TARGETS, key, 0, 3, 0),
        training._Order(W_U, W_TARGET, key, 0, 1, 0),
        follower._stop_order(),
    ]
    sent = [x for order in orders for x in (np.int32(len(order.w_u)), order)]

    def broadcast(tree):
        """Returns process 0's tree, which must have the shapes of this process's."""
        theirs = sent.pop(0)
        shapes = [jax.tree.map(np.shape, x) for x in (tree, theirs)]
        assert shapes[0] == shapes[1]
        return jax.tree.map(np.asarray, theirs)

    monkeypatch.setattr(training.distributed, "broadcast", broadcast)
    follower.follow()
    assert sent == []
    assert [i for _, i in keys] == [0, 1, 2, 0]


# Random latents, and accumulation -----------------------------------------------------


def sample_latents(generator, num_adjacent, num_global, seed=0, codes=1, **changes):
    settings = tiny.training(
        num_adjacent=num_adjacent, num_global=num_global, **changes
    )
    context = make_context(generator, tiny.loss_networks(), PAPER.weights, 1e-4)
    w_u, w_target = (np.repeat(w, codes, axis=0) for w in (W_U, W_TARGET))
    program = jax.jit(
        lambda constants, key: draw_latents(
            context, constants, settings.sampling, w_u, w_target, key
        )[:2]
    )
    return program(context.constants(), jax.random.key(seed))


def test_distances_to_adjacent_codes_are_uniform_up_to_alpha_max(generator):
    student, source = sample_latents(generator, 400, 3, alpha_max=4.0)
    assert student.shape == (1 + 400 + 3, 4, 7)
    offsets = np.asarray(student[1:401] - W_U)
    np.testing.assert_allclose(source[1:401] - W_TARGET, offsets, atol=1e-5)
    lengths = np.linalg.norm(offsets.reshape(400, -1), axis=1)
    assert lengths.max() < 4.0 + 1e-5
    counts, _ = np.histogram(lengths, 4, (0, 4))
    assert counts.min() > 70  # of 100 each
    np.testing.assert_array_equal(student[401:], source[401:])


def test_random_people_depend_on_the_key_and_are_truncated_by_psi(generator):
    first, _ = sample_latents(generator, 1, 2)
    other, _ = sample_latents(generator, 1, 2, seed=1)
    assert not np.any(first[1:] == other[1:])
    np.testing.assert_array_equal(first[0], other[0])
    at_mean, _ = sample_latents(generator, 1, 2, psi=0.0)
    w_avg = generator.mapping.w_avg[...]
    np.testing.assert_allclose(
        at_mean[2:], np.broadcast_to(w_avg, (2, 4, 7)), atol=1e-6
    )


def test_every_code_has_its_own_adjacent_latents(generator):
    student, source = sample_latents(generator, 5, 3, codes=2)
    assert student.shape == (2 + 2 * 5 + 3, 4, 7)
    np.testing.assert_array_equal(student[:2], np.repeat(W_U, 2, axis=0))
    offsets = np.asarray(student[2:12] - W_U)
    np.testing.assert_allclose(source[2:12] - W_TARGET, offsets, atol=1e-5)
    lengths = np.linalg.norm(offsets.reshape(10, -1), axis=1)
    assert len(set(np.round(lengths, 4))) == 10


def test_accumulated_steps_match_up_to_rounding(generator):
    weights = LossWeights(
        PairWeights(0.5, 2.0, 0.3, 1.5), PairWeights(0.7, 1.0, 0.2, 0.5), 3.0
    )
    results = []

    def accumulating(context, sampling):
        return make_accumulating_step(context, sampling, DeviceGroup())

    for make in (MAKE_STEP, accumulating):
        context = make_context(generator, tiny.loss_networks(), weights, 1e-2)
        step = make(context, PAPER.sampling)
        student, opt_state = initial_state(context, context.source)
        for i in range(2):
            student, opt_state, terms = step(
                student, opt_state, context.constants(), W_U, W_TARGET,
                jax.random.key(3), np.int32(i),
            )  # fmt: skip
        results.append((opt_state[0].mu, terms))
    (whole, terms), (accumulated, accumulated_terms) = results
    assert terms.keys() == accumulated_terms.keys()
    for name, value in terms.items():
        np.testing.assert_allclose(
            accumulated_terms[name], value, rtol=2e-4, err_msg=name
        )
    for a, b in zip(jax.tree.leaves(accumulated), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4 * float(abs(b).max()))


def test_gradients_are_accumulated_when_the_settings_say_so(generator, monkeypatch):
    steps = []

    def recording(*args):
        steps.append(make_accumulating_step(*args))
        return steps[-1]

    monkeypatch.setattr(training.accumulate, "make_accumulating_step", recording)
    unlearned, calls = run(generator, gradient_accumulation="always")
    assert len(steps) == 1
    assert len(calls) == 3
    assert calls[2][1]["local"] < calls[0][1]["local"]
    before, after = tiny.flat(generator), tiny.flat(unlearned)
    assert any(np.any(before[name] != after[name]) for name in before)
