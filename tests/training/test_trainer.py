"""The run around the step: what it changes, draws, reports and refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from guide_jax.errors import UnlearningError
from guide_jax.training import losses
from guide_jax.training import trainer as training
from guide_jax.training.losses import LossWeights, PairWeights
from guide_jax.training.sharding import Team
from guide_jax.training.step import Draws, draw_latents, fresh, make_trainer
from guide_jax.training.trainer import Unlearner

RNG = np.random.default_rng(7)
W_U, W_TARGET = (
    RNG.standard_normal((1, 4, 7)).astype(np.float32) for _ in range(2)
)  # [1, L, D] at 8 pixels


MAKE_STEP = training.make_train_step  # the tests replace it by one that they share


@pytest.fixture(scope="module")
def generator():
    return tiny.generator(8)


@pytest.fixture(scope="module", autouse=True)
def _compile_once():
    """The step's arguments are all that differs between these runs."""
    make, made = training.make_train_step, {}

    def once(trainer, draws, team):
        assert trainer.weights == LossWeights()
        return made.setdefault((trainer.graph, draws), make(trainer, draws, team))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_train_step", once)
        yield


def run(
    generator, *, steps=3, w_u=W_U, w_target=W_TARGET, draws=None, seed=0, keeper=None
):
    """Returns the generator that forgot, and all calls of on_step."""
    calls = []
    unlearner = Unlearner(
        generator, tiny.judges(), learning_rate=1e-2, draws=draws or Draws()
    )
    forgetful = unlearner(
        w_u,
        w_target,
        steps=steps,
        key=jax.random.key(seed),
        on_step=lambda step, terms: calls.append((step, terms)),
        keeper=keeper,
    )
    return forgetful, calls


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


def test_the_original_stays_as_it_was(generator):
    before = tiny.flat(generator)
    forgetful, _ = run(generator)
    after = tiny.flat(generator)
    for name, leaf in before.items():
        np.testing.assert_array_equal(after[name], leaf, err_msg=name)
    for name in ("bias", "noise_const"):  # a parameter and a buffer
        theirs = getattr(forgetful.synthesis.b4.conv1, name)
        theirs[...] = jnp.full_like(theirs[...], 9.0)
        np.testing.assert_array_equal(
            getattr(generator.synthesis.b4.conv1, name)[...],
            before[f"synthesis.b4.conv1.{name}"],
        )


def test_runs_are_the_same_by_their_key(generator):
    first, again, other = (tiny.flat(run(generator, seed=s)[0]) for s in (0, 0, 1))
    for name, leaf in first.items():
        np.testing.assert_array_equal(again[name], leaf, err_msg=name)
    differ = {name for name, leaf in first.items() if np.any(other[name] != leaf)}
    assert differ == parameters(generator)


def test_no_steps_give_the_same_generator(generator):
    forgetful, calls = run(generator, steps=0)
    before, after = tiny.flat(generator), tiny.flat(forgetful)
    assert calls == []
    for name, leaf in before.items():
        np.testing.assert_array_equal(after[name], leaf, err_msg=name)


def test_terms_reach_on_step_as_plain_finite_numbers(generator):
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
def test_either_kind_of_random_latents_can_be_left_out(counts):
    w_u, w_target = W_U[:, :2], W_TARGET[:, :2]  # 4 pixels: it compiles sooner
    forgetful, calls = run(
        tiny.generator(4), steps=2, w_u=w_u, w_target=w_target, draws=Draws(*counts)
    )
    assert all(np.isfinite(leaf).all() for leaf in tiny.flat(forgetful).values())
    for _, terms in calls:
        assert (terms["adjacency"] == 0) == (counts[0] == 0)
    assert (calls[1][1]["global"] == 0) == (counts[1] == 0)


def test_a_loss_of_nan_ends_the_run_with_one_line(generator):
    with pytest.raises(UnlearningError) as caught:
        run(generator, w_target=np.full_like(W_TARGET, np.nan))
    text = str(caught.value)
    assert text.startswith("the loss is nan at step 0")
    assert "\n" not in text


def test_a_last_step_that_breaks_the_generator_is_an_error_too(generator, monkeypatch):
    def ruin(trainer, draws, team):
        def step(student, opt_state, constants, w_u, w_target, key, i):
            terms = dict.fromkeys(("total", "local", "adjacency", "global"), 1.0)
            ruined = jax.tree.map(lambda x: x * 1e30, student)
            return ruined, opt_state, terms | {"id": np.ones(3)}

        return step

    monkeypatch.setattr(training, "make_train_step", ruin)
    with pytest.raises(UnlearningError, match="images are not finite"):
        run(generator, steps=1)


@pytest.fixture
def keys(monkeypatch):
    """Replaces the step by one that counts, and keeps the keys that it was given."""
    given = []

    def fake(trainer, draws, team):
        def step(student, opt_state, constants, w_u, w_target, key, i):
            given.append((key, int(i)))
            total = np.nan if len(given) == 5 else float(len(given))
            names = ("total", "local", "adjacency", "global")
            terms = dict.fromkeys(names, jnp.float32(total))
            return student, opt_state, terms | {"id": jnp.full(3, total)}

        return step

    monkeypatch.setattr(training, "make_train_step", fake)
    return given


def test_each_step_is_reported_once_with_its_own_terms(generator, keys):
    _, calls = run(generator, steps=4)
    assert [(step, terms["total"]) for step, terms in calls] == [
        (0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)
    ]  # fmt: skip


def test_steps_before_a_nan_are_reported(generator, keys):
    calls = []
    with pytest.raises(UnlearningError, match="at step 4"):
        Unlearner(generator, tiny.judges())(
            W_U, W_TARGET, steps=8, key=jax.random.key(0),
            on_step=lambda step, terms: calls.append(step),
        )  # fmt: skip
    assert calls == [0, 1, 2, 3]


def test_step_i_draws_from_the_key_folded_with_i(generator, keys):
    run(generator, steps=3, seed=5)
    assert [i for _, i in keys] == [0, 1, 2]
    assert all(key == jax.random.key(5) for key, _ in keys)


def test_only_the_step_runs_at_the_wanted_precision(generator, monkeypatch):
    seen = []

    def fake(trainer, draws, team):
        def step(student, opt_state, constants, w_u, w_target, key, i):
            seen.append(jax.config.jax_default_matmul_precision)
            names = ("total", "local", "adjacency", "global")
            terms = dict.fromkeys(names, jnp.float32(1))
            return student, opt_state, terms | {"id": jnp.ones(3)}

        return step

    monkeypatch.setattr(training, "make_train_step", fake)
    compute = losses.Compute(precision="tensorfloat32")
    with jax.default_matmul_precision("float32"):
        Unlearner(generator, tiny.judges(), compute=compute)(
            W_U, W_TARGET, steps=2, key=jax.random.key(0),
            on_step=lambda step, terms: seen.append(
                jax.config.jax_default_matmul_precision
            ),
        )  # fmt: skip
    assert seen == ["tensorfloat32"] * 2 + ["float32"] * 2


def draw(generator, draws, seed=0):
    trainer = make_trainer(generator, tiny.judges(), LossWeights(), 1e-4)
    program = jax.jit(
        lambda constants, key: draw_latents(
            trainer, constants, draws, W_U, W_TARGET, key
        )
    )
    return program(trainer.constants(), jax.random.key(seed))


def test_steps_to_adjacent_codes_are_uniform_up_to_alpha_max(generator):
    student, source = draw(generator, Draws(400, 3, alpha_max=4.0))
    assert student.shape == (1 + 400 + 3, 4, 7)
    steps = np.asarray(student[1:401] - W_U)
    np.testing.assert_allclose(source[1:401] - W_TARGET, steps, atol=1e-5)
    lengths = np.linalg.norm(steps.reshape(400, -1), axis=1)
    assert lengths.max() < 4.0 + 1e-5
    counts, _ = np.histogram(lengths, 4, (0, 4))
    assert counts.min() > 70  # of 100 each
    np.testing.assert_array_equal(student[401:], source[401:])


def test_random_people_are_new_in_every_step_and_truncated_by_psi(generator):
    first, _ = draw(generator, Draws(1, 2))
    other, _ = draw(generator, Draws(1, 2), seed=1)
    assert not np.any(first[1:] == other[1:])
    np.testing.assert_array_equal(first[0], other[0])
    at_mean, _ = draw(generator, Draws(1, 2, psi=0.0))
    w_avg = generator.mapping.w_avg[...]
    np.testing.assert_allclose(
        at_mean[2:], np.broadcast_to(w_avg, (2, 4, 7)), atol=1e-6
    )


def test_defaults_are_the_paper_s():
    assert Draws() == Draws(num_adjacent=2, num_global=2, alpha_max=15.0, psi=1.0)
    pair = (LossWeights().local.mse, LossWeights().local.lpips)
    assert (*pair, LossWeights().local.identity) == (1e-2, 1.0, 0.1)
    assert LossWeights().adjacency == LossWeights().local


def test_frugal_steps_are_the_same_but_for_rounding(generator):
    weights = LossWeights(
        PairWeights(0.5, 2.0, 0.3, 1.5), PairWeights(0.7, 1.0, 0.2, 0.5), 3.0
    )
    draws, results = Draws(2, 2), []
    for make in (MAKE_STEP, training.make_frugal_step):
        trainer = make_trainer(generator, tiny.judges(), weights, 1e-2)
        step = make(trainer, draws, Team())
        student, opt_state = fresh(trainer, trainer.source)
        for i in range(2):
            student, opt_state, terms = step(
                student, opt_state, trainer.constants(), W_U, W_TARGET,
                jax.random.key(3), np.int32(i),
            )  # fmt: skip
        results.append((opt_state[0].mu, terms))
    (whole, terms), (frugal, frugal_terms) = results
    assert terms.keys() == frugal_terms.keys()
    for name, value in terms.items():
        np.testing.assert_allclose(frugal_terms[name], value, rtol=2e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(frugal), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4 * float(abs(b).max()))


def test_a_frugal_run_is_a_run(generator):
    unlearner = Unlearner(generator, tiny.judges(), learning_rate=1e-2, frugal=True)
    calls = []
    forgetful = unlearner(
        W_U, W_TARGET, steps=3, key=jax.random.key(0),
        on_step=lambda step, terms: calls.append(terms["local"]),
    )  # fmt: skip
    assert len(calls) == 3
    assert calls[2] < calls[0]
    before, after = tiny.flat(generator), tiny.flat(forgetful)
    assert any(np.any(before[name] != after[name]) for name in before)
