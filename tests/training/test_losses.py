"""The loss: its terms, weights, latents and gradients."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from flax import nnx

from guide_jax.config_types import LossWeights, PairWeights
from guide_jax.models import arcface
from guide_jax.training import losses, step
from guide_jax.training.context import make_context
from guide_jax.training.losses import LossInputs

WEIGHTS = LossWeights(
    local=PairWeights(mse=0.3, lpips=0.7, identity=1.1, total=1.3),
    adjacency=PairWeights(mse=0.2, lpips=0.9, identity=0.4, total=0.6),
    global_=1.7,
)
PARTS = [(part, f.name) for part in ("local", "adjacency") for f in
         dataclasses.fields(PairWeights)]  # fmt: skip
N_A, N_G = 2, 3
WEIGHTS_OF_TERMS = losses.term_weights(WEIGHTS, N_A, N_G)


def inputs(seed, pairs=1 + N_A, total=1 + N_A + N_G):
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((pairs, 4))
    return LossInputs(
        rng.standard_normal((total, 3, 3, 2)),
        (rng.standard_normal((total, 5)),),
        embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True),
    )


def distance(a, b):
    return ((a[0] - b[0]) ** 2).sum(1)


def loss(weights, **counts):
    found = losses.pair_terms(inputs(0, **counts), inputs(1, **counts), distance)
    terms = losses.loss_terms(found, weights)
    by = losses.term_weights(weights, len(found.identity) - 1,
                        len(found.lpips) - len(found.identity))  # fmt: skip
    return losses.weighted_sum(found, by), terms


def by_hand():
    """Returns mse, lpips and id of every pair, and LPIPS of the random people."""
    student, source = inputs(0), inputs(1)
    pairs = []
    for i in range(1 + N_A):
        mse = ((student.features[i] - source.features[i]) ** 2).mean()
        lpips = ((student.lpips_maps[0][i] - source.lpips_maps[0][i]) ** 2).sum()
        identity = 1 - student.embeddings[i] @ source.embeddings[i]
        pairs.append({"mse": mse, "lpips": lpips, "identity": identity})
    others = (student.lpips_maps[0][3:] - source.lpips_maps[0][3:]) ** 2
    return pairs, others.sum(1)


def test_terms_are_the_sums_over_pairs_and_random_people():
    pairs, others = by_hand()
    total, terms = loss(WEIGHTS)
    names = ("mse", "lpips", "identity")
    summed = [
        [sum(getattr(part, n) * pair[n] for n in names) for pair in pairs]
        for part in (WEIGHTS.local, WEIGHTS.adjacency)
    ]
    local, adjacency = 1.3 * summed[0][0], 0.6 * (summed[1][1] + summed[1][2])
    np.testing.assert_allclose(terms["local"], local, rtol=1e-5)
    np.testing.assert_allclose(terms["adjacency"], adjacency, rtol=1e-5)
    np.testing.assert_allclose(terms["global"], 1.7 * others.sum(), rtol=1e-5)
    np.testing.assert_allclose(total, local + adjacency + 1.7 * others.sum(), rtol=1e-5)
    np.testing.assert_allclose(terms["total"], total, rtol=1e-6)
    assert terms["mse"].shape == terms["id"].shape == (1 + N_A,)
    assert terms["lpips"].shape == (1 + N_A + N_G,)


@pytest.mark.parametrize(("part", "name"), PARTS)
def test_pair_weights_scale_their_term_and_zero_disables_it(part, name):
    def total(value):
        weights = dataclasses.replace(getattr(WEIGHTS, part), **{name: value})
        return float(loss(dataclasses.replace(WEIGHTS, **{part: weights}))[0])

    pairs, _ = by_hand()
    pairs = pairs[:1] if part == "local" else pairs[1:]
    weights = getattr(WEIGHTS, part)
    if name == "total":
        names = ("mse", "lpips", "identity")
        term = sum(getattr(weights, n) * pair[n] for n in names for pair in pairs)
    else:
        term = weights.total * sum(pair[name] for pair in pairs)
    assert abs(term) > 0.1
    np.testing.assert_allclose(total(2.0) - total(0.0), 2 * term, rtol=1e-4)
    np.testing.assert_allclose(total(5.0) - total(0.0), 5 * term, rtol=1e-4)


def test_the_global_weight_scales_its_term_and_zero_disables_it():
    def total(value):
        return float(loss(dataclasses.replace(WEIGHTS, global_=value))[0])

    _, others = by_hand()
    np.testing.assert_allclose(total(3.0) - total(0.0), 3 * others.sum(), rtol=1e-5)


@pytest.mark.parametrize(("pairs", "total"), [(1, 4), (3, 3), (1, 1)])
def test_without_pairs_or_people_the_sum_is_zero(pairs, total):
    _, terms = loss(WEIGHTS, pairs=pairs, total=total)
    assert (float(terms["adjacency"]) == 0) == (pairs == 1)
    assert (float(terms["global"]) == 0) == (total == pairs)
    assert float(terms["local"]) > 0


def test_latents_pair_the_person_with_the_target_and_random_people_with_themselves():
    rng = np.random.default_rng(0)
    w_u, w_target, w_ra, w_rg = (
        rng.standard_normal((n, 6, 7)).astype(np.float32) for n in (1, 1, 2, 3)
    )
    student, source, view = losses.step_latents(w_u, w_target, w_ra, np.ones(2), w_rg)
    assert view == {}
    assert student.shape == source.shape == (1 + 2 + 3, 6, 7)
    np.testing.assert_array_equal(student[:1], w_u)
    np.testing.assert_array_equal(source[:1], w_target)
    np.testing.assert_allclose(
        student[1:3] - w_u, source[1:3] - w_target, atol=1e-6
    )  # the same offsets
    assert np.abs(student[1:3] - w_u).max() > 0.05
    np.testing.assert_array_equal(student[3:], w_rg)
    np.testing.assert_array_equal(source[3:], w_rg)


@pytest.fixture(scope="module")
def setting():
    """Returns a context, a student unlike its source, latents of 6 pairs, networks."""
    generator, other = tiny.generator(8), tiny.generator(8, seed=1)
    networks = tiny.loss_networks()
    context = make_context(generator, networks, WEIGHTS, 1e-3)
    student = nnx.state(other.synthesis, nnx.Param)
    rng = np.random.default_rng(0)
    latents = losses.StepLatents(
        *(rng.standard_normal((6, 4, 7)).astype(np.float32) for _ in range(2)),
        {},
    )
    return context, student, latents, generator, networks


def test_the_loss_equals_a_plain_loop_over_images(setting):
    context, student, latents, generator, networks = setting
    learner = nnx.merge(context.graph, student, context.frozen)
    modules = nnx.Dict(
        student=learner,
        source=generator.synthesis,
        lpips=networks.lpips,
        identity=networks.identity,
    )
    graph, state = nnx.split(modules)

    @jax.jit
    def one(state, w_student, w_source):
        m = nnx.merge(graph, state)
        (student_image, student_features), (source_image, source_features) = (
            m.student(w_student),
            m.source(w_source),
        )
        return {
            "mse": ((student_features["b8.x"] - source_features["b8.x"]) ** 2).mean(),
            "lpips": m.lpips(student_image, source_image)[0],
            "identity": 1
            - arcface.embed(m.identity, student_image)[0]
            @ arcface.embed(m.identity, source_image)[0],
        }

    wanted = 0.0
    for i in range(6):
        pair = one(state, latents.student[i : i + 1], latents.source[i : i + 1])
        if i > 2:
            wanted += WEIGHTS.global_ * pair["lpips"]
            continue
        part = WEIGHTS.adjacency if i else WEIGHTS.local
        wanted += part.total * sum(
            getattr(part, name) * value for name, value in pair.items()
        )
    got, _ = jax.jit(
        lambda s, c, x: step.loss_fn(context, s, c, x, WEIGHTS_OF_TERMS),
    )(student, context.constants(), latents)
    np.testing.assert_allclose(got, wanted, rtol=2e-5)


def test_only_the_student_gets_a_gradient(setting):
    context, student, latents, *_ = setting

    @jax.jit
    def gradients(student, constants):
        def total(student, source):
            given = constants | {"source": source}
            return step.loss_fn(context, student, given, latents, WEIGHTS_OF_TERMS)[0]

        return jax.grad(total, argnums=(0, 1))(student, constants["source"])

    student_grads, source_grads = gradients(student, context.constants())
    assert all(np.any(leaf) for leaf in jax.tree.leaves(student_grads))
    assert len(jax.tree.leaves(source_grads)) == len(jax.tree.leaves(student_grads))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(source_grads))


def test_lpips_can_use_downsampled_images(setting):
    """The LPIPS terms are those of averaged images; no other term changes."""
    context, student, latents, generator, networks = setting

    def terms(resolution):
        compute = losses.Compute(lpips_resolution=resolution)
        changed = dataclasses.replace(context, compute=compute)
        _, found = jax.jit(
            lambda s, c, x: step.loss_fn(changed, s, c, x, WEIGHTS_OF_TERMS)
        )(student, context.constants(), latents)
        return losses.loss_terms(found, WEIGHTS)

    def averaged(images):  # [N, 8, 8, 3] -> [N, 4, 4, 3]
        return (
            images[:, ::2, ::2] + images[:, 1::2, ::2]
            + images[:, ::2, 1::2] + images[:, 1::2, 1::2]
        ) / 4  # fmt: skip

    learner = nnx.merge(context.graph, student, context.frozen)
    student_images, source_images = (
        averaged(tiny.jitted(synthesis, lambda m, w: m(w)[0], w))
        for synthesis, w in (
            (learner, latents.student),
            (generator.synthesis, latents.source),
        )
    )
    wanted = tiny.jitted(
        networks.lpips, lambda m, a, b: m(a, b), student_images, source_images
    )
    small, full = terms(4), terms(0)
    np.testing.assert_allclose(small["lpips"], wanted, rtol=1e-5)
    assert np.all(np.abs(small["lpips"] / full["lpips"] - 1) > 1e-3)
    for name in ("mse", "id"):
        np.testing.assert_allclose(small[name], full[name], rtol=1e-6)
    for name, value in terms(8).items():  # the images' own size
        np.testing.assert_array_equal(value, full[name])
